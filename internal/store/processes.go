package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/gorm-outbox/outbox/internal/dialect"
)

const savepoint = "outbox"

// Process is what a process says of itself when it registers. Queues is nil for all.
type Process struct {
	ID        string
	Host      string
	PID       int
	Functions []string
	Queues    []string
	Slots     int
}

// Register inserts the row of a process that begins.
func (s *Store) Register(ctx context.Context, p Process) error {
	var queues *string
	if len(p.Queues) > 0 {
		list := encode(p.Queues)
		queues = &list
	}
	_, err := s.exec(ctx, s.Pool, `INSERT INTO {processes} (id, host, pid, functions, queues, slots, started_at, beat_at, beats)
VALUES (?, ?, ?, ?, ?, ?, {now}, {now}, 1)`, p.ID, p.Host, p.PID, encode(p.Functions), queues, p.Slots)
	return err
}

// Unregister removes the row of a process that ends.
func (s *Store) Unregister(ctx context.Context, id string) error {
	_, err := s.exec(ctx, s.Pool, "DELETE FROM {processes} WHERE id = ?", id)
	return err
}

// Beat proves that a process is alive; false means that another process has expired it.
func (s *Store) Beat(ctx context.Context, id string) (bool, error) {
	n, err := s.exec(ctx, s.Pool, "UPDATE {processes} SET beat_at = {now}, beats = beats + 1 WHERE id = ?", id)
	return n > 0, err
}

// Watch is what one look at the other processes shows.
type Watch struct {
	Beats   map[string]int64 // heartbeats by process
	Orphans bool             // tasks are running whose process has no row
	Parked  bool             // tasks are parked
	Owned   int64            // tasks that the process itself runs, as the table has it
}

// Watch looks at the processes, and for tasks that are without one.
func (s *Store) Watch(ctx context.Context, process string) (Watch, error) {
	w := Watch{Beats: map[string]int64{}}
	err := s.query(ctx, s.Pool, `SELECT id, beats FROM {processes}
UNION ALL SELECT 'orphans', count(*) FROM (SELECT 1 AS one FROM {tasks} t WHERE t.state = 'running'
	AND NOT EXISTS (SELECT 1 FROM {processes} p WHERE p.id = t.process_id) LIMIT 1) o
UNION ALL SELECT 'parked', count(*) FROM (SELECT 1 AS one FROM {tasks} WHERE state = 'parked' LIMIT 1) k
UNION ALL SELECT 'owned', count(*) FROM {tasks} WHERE state = 'running' AND process_id = ?`, []any{process},
		func(r *sql.Rows) error {
			var id string
			var n int64
			if err := r.Scan(&id, &n); err != nil {
				return err
			}
			switch id {
			case "orphans":
				w.Orphans = n > 0
			case "parked":
				w.Parked = n > 0
			case "owned":
				w.Owned = n
			default:
				w.Beats[id] = n
			}
			return nil
		})
	return w, err
}

// Served are the queues that live processes serve; all means that one of them serves every queue.
func (s *Store) Served(ctx context.Context) (queues map[string]bool, all bool, err error) {
	queues = map[string]bool{}
	err = s.query(ctx, s.Pool, "SELECT queues FROM {processes}", nil, func(r *sql.Rows) error {
		var list []string
		var text sql.NullString
		if err := r.Scan(&text); err != nil {
			return err
		}
		if !text.Valid {
			all = true
		} else if err := json.Unmarshal([]byte(text.String), &list); err != nil {
			return nil // another program has written into the row
		}
		for _, q := range list {
			queues[q] = true
		}
		return nil
	})
	return queues, all, err
}

// Expire removes the row of a process that was seen dead, unless it has beaten since. Its tasks are
// orphans then.
func (s *Store) Expire(ctx context.Context, id string, beats int64) (bool, error) {
	n, err := s.exec(ctx, s.Pool, "DELETE FROM {processes} WHERE id = ? AND beats = ?", id, beats)
	return n > 0, err
}

// ExpireOthers removes the rows of every process but one.
func (s *Store) ExpireOthers(ctx context.Context, id string) error {
	_, err := s.exec(ctx, s.Pool, "DELETE FROM {processes} WHERE id <> ?", id)
	return err
}

// ExpireOlder removes the rows whose last heartbeat is older than an age by the database's clock,
// for a process that cannot watch long enough.
func (s *Store) ExpireOlder(ctx context.Context, before time.Time) (int64, error) {
	return s.exec(ctx, s.Pool, "DELETE FROM {processes} WHERE beat_at < "+s.Dialect.Instant(), s.Dialect.Time(before))
}

// Judge says what becomes of an orphan: one of the two.
type Judge func(*Task) (*dialect.Outcome, *dialect.Requeued)

// Rescue takes up to limit tasks away from processes that are gone; the SELECT is Dialect.Orphans.
// judge decides what becomes of each. Whether a task may be run again without counting is in its
// row (repeatable), where the claim has stored it. Rows that a zombie's transaction has locked are
// left for later. A row that the database refuses comes back with the error; it does not keep the
// others.
func (s *Store) Rescue(ctx context.Context, limit int, judge Judge) (rescued []Claimed, all bool, err error) {
	err = s.inTx(ctx, func(tx *sql.Tx) error {
		rescued = nil
		if err := s.Dialect.Begin(ctx, tx); err != nil {
			return err
		}
		var found []Claimed
		var scan claimScan
		if err := s.Dialect.Orphans(ctx, tx, limit, func(r dialect.Row) error {
			found = append(found, scan.claimed(r))
			return nil
		}); err != nil {
			return err
		}
		all = len(found) < limit
		// Look again, now that the rows are locked: one may have been given back and claimed by a
		// live process between the statement's snapshot and the lock.
		alive := map[string]bool{}
		if err := s.query(ctx, tx, "SELECT id FROM {processes}", nil, func(r *sql.Rows) error {
			var id string
			err := r.Scan(&id)
			alive[id] = true
			return err
		}); err != nil {
			return err
		}
		found = slices.DeleteFunc(found, func(c Claimed) bool { return alive[deref(c.Task.ProcessID)] })
		rescued, err = s.rescueThese(ctx, tx, found, judge)
		return err
	})
	return rescued, all, err
}

// rescueThese writes transitions; where the database refuses some row, one by one.
func (s *Store) rescueThese(ctx context.Context, tx *sql.Tx, found []Claimed, judge Judge) ([]Claimed, error) {
	if len(found) == 0 {
		return nil, nil
	}
	var outcomes []dialect.Outcome
	var requeued []dialect.Requeued
	for _, c := range found {
		if o, r := judge(c.Task); o != nil {
			outcomes = append(outcomes, *o)
		} else {
			requeued = append(requeued, *r)
		}
	}
	if _, err := tx.ExecContext(ctx, "SAVEPOINT "+savepoint); err != nil {
		return nil, err
	}
	done, err := s.completeIn(ctx, s.work(tx), outcomes, requeued)
	if err == nil {
		_, err = tx.ExecContext(ctx, "RELEASE SAVEPOINT "+savepoint)
	} else if class := dialect.Classify(err); class == dialect.Data || class == dialect.Other {
		if _, undo := tx.ExecContext(ctx, "ROLLBACK TO SAVEPOINT "+savepoint); undo != nil {
			return nil, errors.Join(err, undo)
		}
		if len(found) == 1 {
			return []Claimed{{Task: found[0].Task, Err: err}}, nil
		}
		var taken []Claimed
		for i := range found {
			one, err := s.rescueThese(ctx, tx, found[i:i+1:i+1], judge)
			if err != nil {
				return nil, err
			}
			taken = append(taken, one...)
		}
		return taken, nil
	}
	if err != nil {
		return nil, err
	}
	var taken []Claimed
	for _, c := range found {
		if done[c.Task.ID] {
			taken = append(taken, Claimed{Task: c.Task})
		}
	}
	return taken, nil
}

// Others tells of each process but one which functions and queues it has; queues is nil for all.
func (s *Store) Others(ctx context.Context, process string, each func(functions, queues []string)) error {
	return s.query(ctx, s.Pool, "SELECT functions, queues FROM {processes} WHERE id <> ?", []any{process}, func(r *sql.Rows) error {
		var functions, queues sql.NullString
		if err := r.Scan(&functions, &queues); err != nil {
			return err
		}
		each(texts(functions), texts(queues))
		return nil
	})
}

// texts reads a JSON array; nil where the column is NULL, and empty where it holds something else.
func texts(column sql.NullString) (list []string) {
	if !column.Valid {
		return nil
	}
	if json.Unmarshal([]byte(column.String), &list) != nil || list == nil {
		return []string{}
	}
	return list
}

// LastBeaten is the process that has beaten last.
func (s *Store) LastBeaten(ctx context.Context) (host string, pid int64, found bool, err error) {
	err = s.query(ctx, s.Pool, "SELECT host, pid FROM {processes} ORDER BY beat_at", nil, func(r *sql.Rows) error {
		found = true
		return r.Scan(&host, &pid)
	})
	return host, pid, found, err
}

// encode is a list as a JSON array.
func encode(list []string) string {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(append([]string{}, list...)); err != nil {
		panic("outbox: texts do not encode: " + err.Error())
	}
	return strings.TrimSuffix(b.String(), "\n")
}
