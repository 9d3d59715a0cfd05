package oracle

import (
	"context"
	"database/sql"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
)

// facts are everything that the tables hold about one task.
type facts struct {
	task    *outbox.TaskModel
	past    *outbox.HistoryModel
	effects []Effect
	runs    []Run
}

// snapshot is everything that the tables hold about some tasks at one moment. Runs may be in
// another database, so they are read after that moment.
type snapshot struct {
	now       time.Time
	facts     map[string]*facts
	processes []outbox.ProcessModel
}

func (s *snapshot) of(id string) *facts {
	f := s.facts[id]
	if f == nil {
		f = &facts{}
		s.facts[id] = f
	}
	return f
}

// read reads the tasks with the given ids, or all tasks.
func (o *Oracle) read(ctx context.Context, ids []string, all bool) (*snapshot, error) {
	s := &snapshot{facts: map[string]*facts{}}
	options := &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true}
	if o.serial {
		options = nil // every transaction sees one moment
	}
	err := o.db.WithContext(ctx).Transaction(func(tx *gorm.DB) error {
		if err := o.clock(tx, &s.now); err != nil {
			return err
		}
		if err := tx.Find(&s.processes).Error; err != nil {
			return err
		}
		return some(tx, ids, all, "id", "task", func(byID, byTask *gorm.DB) error {
			var tasks []outbox.TaskModel
			var past []outbox.HistoryModel
			var effects []Effect
			if err := byID.Find(&tasks).Error; err != nil {
				return err
			}
			if err := byID.Find(&past).Error; err != nil {
				return err
			}
			if err := byTask.Order("seq").Find(&effects).Error; err != nil {
				return err
			}
			for i := range tasks {
				s.of(tasks[i].ID).task = &tasks[i]
			}
			for i := range past {
				s.of(past[i].ID).past = &past[i]
			}
			for _, e := range effects {
				f := s.of(e.Task)
				f.effects = append(f.effects, e)
			}
			return nil
		})
	}, options)
	if err != nil {
		return nil, err
	}
	// In a transaction, so that no plugin reads from a replica.
	err = o.runs.WithContext(ctx).Transaction(func(tx *gorm.DB) error {
		return some(tx, ids, all, "id", "task", func(_, byTask *gorm.DB) error {
			var runs []Run
			if err := byTask.Order("seq").Find(&runs).Error; err != nil {
				return err
			}
			for _, r := range runs {
				f := s.of(r.Task)
				f.runs = append(f.runs, r)
			}
			return nil
		})
	}, options)
	return s, err
}

// clock reads the time of the database's clock, in the format of its rows.
func (o *Oracle) clock(tx *gorm.DB, now *time.Time) error {
	var text string
	if err := tx.Raw("SELECT " + o.now).Row().Scan(&text); err != nil {
		return err
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02 15:04:05.999999-07:00"} {
		if t, err := time.Parse(layout, text); err == nil {
			*now = t
			return nil
		}
	}
	return &time.ParseError{Layout: time.RFC3339Nano, Value: text}
}

// some calls f with conditions for the requested tasks, one part of them at a time.
func some(tx *gorm.DB, ids []string, all bool, id, task string, f func(byID, byTask *gorm.DB) error) error {
	session := &gorm.Session{}
	if all {
		return f(tx.Session(session), tx.Session(session))
	}
	return chunks(ids, func(part []string) error {
		return f(tx.Where(id+" IN ?", part).Session(session), tx.Where(task+" IN ?", part).Session(session))
	})
}

// chunks keeps lists shorter than the limits of databases for parameters.
func chunks(ids []string, f func([]string) error) error {
	for len(ids) > 0 {
		n := min(len(ids), 500)
		if err := f(ids[:n]); err != nil {
			return err
		}
		ids = ids[n:]
	}
	return nil
}
