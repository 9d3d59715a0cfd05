package outbox

import (
	"context"
	"database/sql"
	"slices"
	"strings"
	"time"

	"github.com/gorm-outbox/outbox/internal/dialect"
)

// exchanger is what might finish these and claim in one statement; nil where nothing can.
func (s *store) exchanger(requeued []dialect.Requeued) dialect.Exchanger {
	if d, ok := s.d.(dialect.Exchanger); ok && len(requeued) == 0 {
		return d
	}
	return nil
}

// finish writes outcomes as write does, where there is an exchanger.
func (s *store) finish(ctx context.Context, d dialect.Exchanger, outcomes []dialect.Outcome) (done fenced, err error) {
	defer caught(&err)
	moved, all, err := d.Finish(ctx, s.pool, outcomes)
	return fencedBy(moved, all), err
}

// exchange is write and claim in one transaction.
func (s *store) exchange(ctx context.Context, outcomes []dialect.Outcome, requeued []dialect.Requeued, plan []dialect.ClaimParams, limit int) (
	done fenced, lists [][]claimed, err error,
) {
	defer caught(&err)
	if d := s.exchanger(requeued); d != nil && len(plan) == 1 {
		p := plan[0]
		p.Limit = min(p.Limit, limit)
		var scan claimScan
		var list []claimed
		moved, all, err := d.Exchange(ctx, s.pool, outcomes, p, func(r dialect.Row) error {
			list = append(list, scan.claimed(r))
			return nil
		})
		if err != nil {
			return fenced{}, nil, err
		}
		return fencedBy(moved, all), [][]claimed{list}, nil
	}
	over, err := s.lockWriter(ctx)
	if err != nil {
		return fenced{}, nil, err
	}
	defer over()
	err = s.inTx(ctx, func(tx *sql.Tx) (err error) {
		ctx := s.inside(ctx)
		if done.ids, err = s.writeIn(ctx, s.work(tx), outcomes, requeued); err == nil {
			lists, err = s.claimIn(ctx, s.work(tx), plan, limit)
		}
		return err
	})
	if err != nil {
		return fenced{}, nil, err
	}
	return done, lists, nil
}

// fenced are the tasks of a group that the fence let through: all of them, or those that are listed.
type fenced struct {
	all bool
	ids map[string]bool
}

func fencedBy(moved []string, all bool) fenced {
	f := fenced{all: all, ids: make(map[string]bool, len(moved))}
	for _, id := range moved {
		f.ids[id] = true
	}
	return f
}

func (f fenced) has(id string) bool { return f.all || f.ids[id] }

// write makes outcomes and requeues durable, in one transaction where the database needs one, and returns the ids that
// the fence let through.
func (s *store) write(ctx context.Context, outcomes []dialect.Outcome, requeued []dialect.Requeued) (done map[string]bool, err error) {
	defer caught(&err)
	if s.d.OneStatement() && (len(outcomes) == 0 || len(requeued) == 0) {
		return s.writeIn(ctx, s.work(nil), outcomes, requeued)
	}
	over, err := s.lockWriter(ctx)
	if err != nil {
		return nil, err
	}
	defer over()
	err = s.inTx(ctx, func(tx *sql.Tx) (err error) {
		done, err = s.writeIn(ctx, s.work(tx), outcomes, requeued)
		return err
	})
	if err != nil {
		return nil, err
	}
	return done, nil
}

func (s *store) writeIn(ctx context.Context, c dialect.Conn, outcomes []dialect.Outcome, requeued []dialect.Requeued) (map[string]bool, error) {
	done := make(map[string]bool, len(outcomes)+len(requeued))
	if len(outcomes) > 0 {
		ids, err := s.d.Move(ctx, c, dialect.FromRunning, outcomes)
		if err != nil {
			return nil, err
		}
		for _, id := range ids {
			done[id] = true
		}
	}
	if len(requeued) > 0 {
		ids, err := s.d.Requeue(ctx, c, requeued)
		if err != nil {
			return nil, err
		}
		for _, id := range ids {
			done[id] = true
		}
	}
	return done, nil
}

// writeUnlocked is write, but for the tasks whose rows another transaction has locked: it waits for none of them, and
// returns their ids.
func (s *store) writeUnlocked(ctx context.Context, outcomes []dialect.Outcome, requeued []dialect.Requeued) (done, locked map[string]bool, err error) {
	var ids []any
	for _, o := range outcomes {
		ids = append(ids, o.ID)
	}
	for _, r := range requeued {
		ids = append(ids, r.ID)
	}
	find := " FROM {tasks} WHERE id IN (?" + strings.Repeat(", ?", len(ids)-1) + ")"
	over, err := s.lockWriter(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer over()
	err = s.inTx(ctx, func(tx *sql.Tx) error {
		free, keys := map[string]bool{}, map[string]string{}
		if err := s.query(ctx, tx, "SELECT id, {key}"+find+s.d.SkipLocked(), ids, func(r *sql.Rows) error {
			var id string
			var key *string
			err := r.Scan(&id, &key)
			if free[id] = key == nil; key != nil {
				keys[id] = *key
			}
			return err
		}); err != nil {
			return err
		}
		// A key may be locked where its row is not: on MySQL by whoever could not create another task with it.
		for id, key := range keys {
			if err := s.query(ctx, tx, "SELECT id FROM {tasks} WHERE {key} = ?"+s.d.SkipLocked(), []any{key}, func(r *sql.Rows) error {
				free[id] = true
				return nil
			}); err != nil {
				return err
			}
		}
		// Those that are gone are nobody's any more.
		locked = map[string]bool{}
		if err := s.query(ctx, tx, "SELECT id"+find, ids, func(r *sql.Rows) error {
			var id string
			err := r.Scan(&id)
			if !free[id] {
				locked[id] = true
			}
			return err
		}); err != nil {
			return err
		}
		done, err = s.writeIn(ctx, tx,
			slices.DeleteFunc(slices.Clone(outcomes), func(o dialect.Outcome) bool { return locked[o.ID] }),
			slices.DeleteFunc(slices.Clone(requeued), func(r dialect.Requeued) bool { return locked[r.ID] }))
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	return done, locked, nil
}

// alreadyApplied tells which of some outcomes are in history already, written by a statement whose reply was lost.
func (s *store) alreadyApplied(ctx context.Context, outcomes []dialect.Outcome) (map[string]bool, error) {
	there := map[string]bool{}
	for _, o := range outcomes {
		past, err := s.history(ctx, s.pool, o.ID)
		if err != nil {
			return nil, err
		}
		if past.is(o) {
			there[o.ID] = true
		}
	}
	return there, nil
}

// committed tells whether the finish of a task, whose COMMIT got no reply, took effect.
func (s *store) committed(ctx context.Context, o dialect.Outcome) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	there := false
	err := s.inTx(ctx, func(tx *sql.Tx) error {
		return s.query(ctx, tx, "SELECT id FROM {tasks} WHERE id = ?"+s.d.ForUpdate(), []any{o.ID}, func(*sql.Rows) error {
			there = true
			return nil
		})
	})
	if err != nil || there {
		return false, err
	}
	past, err := s.history(ctx, s.pool, o.ID)
	return past.is(o), err
}

// is reports whether a history row, if there is one, was written by this outcome: a take-over of the same claim leaves its
// version and process, too, but another status or reason.
func (h *HistoryModel) is(o dialect.Outcome) bool {
	return h != nil && h.Version == *o.Version && deref(h.ProcessID) == o.Process && string(h.Status) == o.Status && string(h.Reason) == o.Reason
}
