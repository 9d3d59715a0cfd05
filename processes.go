package outbox

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"github.com/gorm-outbox/outbox/internal/dialect"
)

// What the statements of claim.go and outcomes.go are for tasks, these are for the processes' rows, and for the tasks that a process leaves behind.

func (s *store) register(ctx context.Context, m ProcessModel) error {
	_, err := s.exec(ctx, s.pool, `INSERT INTO {processes} (id, host, pid, functions, queues, slots, started_at, beat_at, beats)
VALUES (?, ?, ?, ?, ?, ?, {now}, {now}, 1)`, m.ID, m.Host, m.PID, m.Functions, m.Queues, m.Slots)
	return err
}

func (s *store) unregister(ctx context.Context, id string) error {
	_, err := s.exec(ctx, s.pool, "DELETE FROM {processes} WHERE id = ?", id)
	return err
}

// beat proves that a process is alive; false means that somebody has declared it dead.
func (s *store) beat(ctx context.Context, id string) (bool, error) {
	n, err := s.exec(ctx, s.pool, "UPDATE {processes} SET beat_at = {now}, beats = beats + 1 WHERE id = ?", id)
	return n > 0, err
}

// watch is what one look at the other processes shows.
type watch struct {
	beats   map[string]int64 // heartbeats by process
	orphans bool             // tasks are running whose process has no row
	parked  bool             // tasks are parked
	owned   int64            // tasks that the process itself runs, as the table has it
}

func (s *store) watch(ctx context.Context, process string) (watch, error) {
	w := watch{beats: map[string]int64{}}
	err := s.query(ctx, s.pool, `SELECT id, beats FROM {processes}
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
				w.orphans = n > 0
			case "parked":
				w.parked = n > 0
			case "owned":
				w.owned = n
			default:
				w.beats[id] = n
			}
			return nil
		})
	return w, err
}

// served are the queues that live processes serve; all means that one of them serves every queue.
func (s *store) served(ctx context.Context) (queues map[string]bool, all bool, err error) {
	queues = map[string]bool{}
	err = s.query(ctx, s.pool, "SELECT queues FROM {processes}", nil, func(r *sql.Rows) error {
		var list []string
		var text sql.NullString
		if err := r.Scan(&text); err != nil {
			return err
		}
		if !text.Valid {
			all = true
		} else if err := json.Unmarshal([]byte(text.String), &list); err != nil {
			return nil // somebody has written into the row
		}
		for _, q := range list {
			queues[q] = true
		}
		return nil
	})
	return queues, all, err
}

// expire removes the row of a process that was seen dead, unless it has beaten since. Its tasks are orphans then.
func (s *store) expire(ctx context.Context, id string, beats int64) (bool, error) {
	n, err := s.exec(ctx, s.pool, "DELETE FROM {processes} WHERE id = ? AND beats = ?", id, beats)
	return n > 0, err
}

// expireOthers removes the rows of every process but one.
func (s *store) expireOthers(ctx context.Context, id string) error {
	_, err := s.exec(ctx, s.pool, "DELETE FROM {processes} WHERE id <> ?", id)
	return err
}

// expireOlder removes the rows whose last heartbeat is older than an age by the database's clock, for those who cannot
// watch long enough.
func (s *store) expireOlder(ctx context.Context, before time.Time) (int64, error) {
	return s.exec(ctx, s.pool, "DELETE FROM {processes} WHERE beat_at < "+s.d.Instant(), s.d.Time(before))
}

// othersHave reports whether another process with a row may run a task. Where that cannot be found out, it may.
func (d *dispatcher) othersHave(t *TaskModel) bool {
	ctx, cancel := context.WithTimeout(d.writeCtx, d.statementLimit())
	defer cancel()
	found := false
	err := d.store.query(ctx, d.store.pool, "SELECT functions, queues FROM {processes} WHERE id <> ?", []any{d.lease.owner()}, func(r *sql.Rows) error {
		var functions, queues JSON
		if err := r.Scan(&functions, &queues); err != nil {
			return err
		}
		found = found || lists(functions, t.Func) && (queues == nil || lists(queues, t.Queue))
		return nil
	})
	return found || err != nil
}

// lists reports whether a JSON array of texts has one.
func lists(array JSON, text string) bool {
	var list []string
	return json.Unmarshal(array, &list) == nil && slices.Contains(list, text)
}

// owned are the running tasks of a process.
func (s *store) owned(ctx context.Context, process string) ([]claimed, error) {
	var out []claimed
	var scan claimScan
	err := s.query(ctx, s.pool, "SELECT {columns} FROM {tasks} WHERE state = 'running' AND process_id = ?", []any{process},
		func(r *sql.Rows) error {
			out = append(out, scan.claimed(r))
			return nil
		})
	return out, err
}

// takeOver takes up to limit tasks away from processes that are gone. What becomes of each was recorded by its claim. Rows
// that a zombie's transaction has locked are left for later. A row that the database refuses comes back with the error; it
// does not keep the others.
func (s *store) takeOver(ctx context.Context, limit int, judge func(*TaskModel) transition) (taken []claimed, all bool, err error) {
	err = s.inTx(ctx, func(tx *sql.Tx) error {
		taken = nil
		if err := s.d.Begin(ctx, tx); err != nil {
			return err
		}
		var found []claimed
		var scan claimScan
		if err := s.d.Orphans(ctx, tx, limit, func(r dialect.Row) error {
			found = append(found, scan.claimed(r))
			return nil
		}); err != nil {
			return err
		}
		all = len(found) < limit
		// Look again, now that the rows are locked: one may have been given back and claimed by a live process between
		// the statement's snapshot and the lock.
		alive := map[string]bool{}
		if err := s.query(ctx, tx, "SELECT id FROM {processes}", nil, func(r *sql.Rows) error {
			var id string
			err := r.Scan(&id)
			alive[id] = true
			return err
		}); err != nil {
			return err
		}
		found = slices.DeleteFunc(found, func(c claimed) bool { return alive[deref(c.task.ProcessID)] })
		taken, err = s.takeThese(ctx, tx, found, judge)
		return err
	})
	return taken, all, err
}

// takeThese writes transitions; where the database refuses some row, one by one.
func (s *store) takeThese(ctx context.Context, tx *sql.Tx, found []claimed, judge func(*TaskModel) transition) ([]claimed, error) {
	if len(found) == 0 {
		return nil, nil
	}
	var outcomes []dialect.Outcome
	var requeued []dialect.Requeued
	for _, c := range found {
		if v := judge(c.task); v.outcome != nil {
			outcomes = append(outcomes, *v.outcome)
		} else {
			requeued = append(requeued, *v.requeue)
		}
	}
	if _, err := tx.ExecContext(ctx, "SAVEPOINT "+savepointName); err != nil {
		return nil, err
	}
	done, err := s.writeIn(ctx, s.work(tx), outcomes, requeued)
	if err == nil {
		_, err = tx.ExecContext(ctx, "RELEASE SAVEPOINT "+savepointName)
	} else if class := dialect.Classify(err); class == dialect.Data || class == dialect.Other {
		if _, undo := tx.ExecContext(ctx, "ROLLBACK TO SAVEPOINT "+savepointName); undo != nil {
			return nil, errors.Join(err, undo)
		}
		if len(found) == 1 {
			return []claimed{{task: found[0].task, err: err}}, nil
		}
		var taken []claimed
		for i := range found {
			one, err := s.takeThese(ctx, tx, found[i:i+1:i+1], judge)
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
	var taken []claimed
	for _, c := range found {
		if done[c.task.ID] {
			taken = append(taken, claimed{task: c.task})
		}
	}
	return taken, nil
}
