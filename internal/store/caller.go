package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/gorm-outbox/outbox/internal/dialect"
)

// What callers do to tasks, on their own connections and in their own transactions.

// DuplicateKeyError says which unfinished task holds a key. The API has an error of its own for it.
type DuplicateKeyError struct{ Key, ID string }

func (e *DuplicateKeyError) Error() string { return "duplicate key" }

// Inserted is what the database has given a new row.
type Inserted struct{ RunAt, CreatedAt time.Time }

// Insert inserts one chunk of rows and tells of each what the database has given it. A key that an
// unfinished task holds is a *DuplicateKeyError, which leaves the chunk's other rows inserted: the
// caller rolls back.
func (s *Store) Insert(ctx context.Context, c dialect.Conn, rows []dialect.NewRow) (map[string]Inserted, error) {
	inserted := make(map[string]Inserted, len(rows))
	missing := rows
	// Between a conflict and the look at the holder of the key, the holder may go: then insert
	// again.
	for range 5 {
		err := s.Dialect.Insert(ctx, c, missing, func(r dialect.Row) error {
			var id string
			var in Inserted
			err := r.Scan(&id, instant{&in.RunAt}, instant{&in.CreatedAt})
			inserted[id] = in
			return err
		})
		if err != nil {
			return nil, s.Explain(err)
		}
		missing = nil
		for _, r := range rows {
			if _, is := inserted[r.ID]; !is {
				missing = append(missing, r)
			}
		}
		if len(missing) == 0 {
			return inserted, nil
		}
		if err := s.holder(ctx, c, missing); err != nil {
			return nil, err
		}
	}
	return nil, errors.New("the task that holds the key came and went five times while this one was inserted")
}

// holder finds out which task holds a key that kept a row out; nil when none does any more.
func (s *Store) holder(ctx context.Context, c dialect.Conn, missing []dialect.NewRow) error {
	for _, r := range missing {
		if r.Key == nil {
			return fmt.Errorf("the database did not insert the row of task %s", r.ID)
		}
		id, found, err := s.one(ctx, c, "SELECT id FROM {tasks} WHERE {key} = ?"+s.Dialect.Latest(), *r.Key)
		if err != nil {
			return err
		}
		if found {
			return &DuplicateKeyError{Key: *r.Key, ID: id}
		}
	}
	return nil
}

// HolderOf is the unfinished task that has a key, and its state; both are empty when none has.
// latest is as in Task.
func (s *Store) HolderOf(ctx context.Context, c dialect.Conn, key string, latest bool) (id, state string, err error) {
	err = s.query(ctx, c, "SELECT id, state FROM {tasks} WHERE {key} = ?"+s.latest(latest), []any{key}, func(r *sql.Rows) error {
		return r.Scan(&id, &state)
	})
	return id, state, s.Explain(err)
}

// EndWaiting moves a task that waits to history; version nil means any. It reports whether there
// was one.
func (s *Store) EndWaiting(ctx context.Context, c dialect.Conn, o dialect.Outcome) (bool, error) {
	moved, err := s.Dialect.Move(ctx, c, dialect.FromWaiting, []dialect.Outcome{o})
	return len(moved) > 0, s.Explain(err)
}

// Reschedule gives a task that waits another start time, now for the zero Time; version nil means
// any. It reports whether there was one.
func (s *Store) Reschedule(ctx context.Context, c dialect.Conn, id string, at time.Time, version *int64) (bool, error) {
	start, params := "{now}", []any{}
	if !at.IsZero() {
		start, params = s.Dialect.Instant(), append(params, s.Dialect.Time(at))
	}
	query := "UPDATE {tasks} SET run_at = " + start + ", state = 'pending', version = version + 1 WHERE id = ? AND state IN ('pending', 'parked')"
	params = append(params, id)
	if version != nil {
		query += " AND version = ?"
		params = append(params, *version)
	}
	n, err := s.exec(ctx, c, query, params...)
	return n > 0, s.Explain(err)
}

// MarkRerun names in a history row the task that repeats it. It reports false for one that was
// repeated before.
func (s *Store) MarkRerun(ctx context.Context, c dialect.Conn, id, rerunID string) (bool, error) {
	n, err := s.exec(ctx, c, "UPDATE {history} SET rerun_id = ? WHERE id = ? AND rerun_id IS NULL", rerunID, id)
	return n > 0, err
}

// Discard deletes a row of history that ended as error and was not repeated. It reports whether
// there was one.
func (s *Store) Discard(ctx context.Context, c dialect.Conn, id string) (bool, error) {
	n, err := s.exec(ctx, c, "DELETE FROM {history} WHERE id = ? AND status = 'error' AND rerun_id IS NULL", id)
	return n > 0, err
}

// Audit is a change that an administrator has made. Before and After are JSON objects.
type Audit struct{ ID, Actor, Action, TaskID, Func, Reason, Before, After string }

// InsertAudit records a change, with the database's time.
func (s *Store) InsertAudit(ctx context.Context, c dialect.Conn, a Audit) error {
	_, err := s.exec(ctx, c, `INSERT INTO {audit} (id, at, actor, action, task_id, func, reason, {before}, after)
VALUES (?, {now}, ?, ?, ?, ?, ?, ?, ?)`, a.ID, a.Actor, a.Action, a.TaskID, a.Func, a.Reason, a.Before, a.After)
	return s.Explain(err)
}
