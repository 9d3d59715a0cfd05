package outbox

import (
	"context"
	"database/sql"
	"strings"
	"time"

	"github.com/gorm-outbox/outbox/internal/dialect"
)

// The store's statements stand with what they are for, in schema.go, claim.go, outcomes.go and processes.go, and in internal/dialect
// when databases write them differently. Each that changes a state names the one that it leaves, or the fence, in its WHERE; its
// caller looks at what it changed. Here is what they share.

// inTx runs f in a transaction of the pool's own.
func (s *store) inTx(ctx context.Context, f func(*sql.Tx) error) (err error) {
	defer caught(&err)
	if s.statements != nil {
		s.statements.Prepare(ctx)
	}
	tx, err := s.pool.BeginTx(ctx, &sql.TxOptions{Isolation: s.d.Isolation()})
	if err != nil {
		return err
	}
	defer dialect.RollBack(ctx, s.d, tx)
	if err := f(tx); err != nil {
		return err
	}
	return s.d.End(ctx, tx.Commit)
}

func (s *store) query(ctx context.Context, c dialect.Conn, query string, params []any, each func(*sql.Rows) error) (err error) {
	defer caught(&err)
	rows, err := c.QueryContext(ctx, s.d.Rebind(query), params...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := each(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

func (s *store) exec(ctx context.Context, c dialect.Conn, query string, params ...any) (n int64, err error) {
	defer caught(&err)
	r, err := c.ExecContext(ctx, s.d.Rebind(query), params...)
	if err != nil {
		return 0, err
	}
	return r.RowsAffected()
}

// one reads one text.
func (s *store) one(ctx context.Context, c dialect.Conn, query string, params ...any) (text string, found bool, err error) {
	err = s.query(ctx, c, query, params, func(r *sql.Rows) error {
		found = true
		return r.Scan(&text)
	})
	return text, found, s.explain(err)
}

func taskDest(t *TaskModel) []any {
	return []any{
		&t.ID, &t.Func, &t.Args, &t.Key, &t.Queue, &t.Priority, instant{&t.RunAt}, &t.State, &t.Attempt, &t.Uncounted,
		&t.Crashes, &t.MaxAttempts, &t.TimeoutMS, &t.Repeatable, &t.Version, &t.ProcessID, &t.RerunOf, &t.Errors, &t.Meta,
		instant{&t.CreatedAt}, nullInstant{&t.StartedAt},
	}
}

// task reads a row of the task table; nil when there is none.
func (s *store) task(ctx context.Context, c dialect.Conn, id string, ending ...string) (*TaskModel, error) {
	var found *TaskModel
	err := s.query(ctx, c, "SELECT {columns} FROM {tasks} WHERE id = ?"+strings.Join(ending, ""), []any{id}, func(r *sql.Rows) error {
		found = new(TaskModel)
		return r.Scan(taskDest(found)...)
	})
	return found, s.explain(err)
}

// history reads a row of history; nil when there is none.
func (s *store) history(ctx context.Context, c dialect.Conn, id string, ending ...string) (*HistoryModel, error) {
	const query = `SELECT id, func, args, {key}, queue, priority, run_at, attempt, uncounted, crashes, max_attempts, timeout_ms,
	version, process_id, rerun_of, errors, meta, created_at, started_at, status, reason, result, error, finished_at, rerun_id
FROM {history} WHERE id = ?`
	var found *HistoryModel
	err := s.query(ctx, c, query+strings.Join(ending, ""), []any{id}, func(r *sql.Rows) error {
		h := new(HistoryModel)
		found = h
		return r.Scan(&h.ID, &h.Func, &h.Args, &h.Key, &h.Queue, &h.Priority, instant{&h.RunAt}, &h.Attempt, &h.Uncounted,
			&h.Crashes, &h.MaxAttempts, &h.TimeoutMS, &h.Version, &h.ProcessID, &h.RerunOf, &h.Errors, &h.Meta,
			instant{&h.CreatedAt}, nullInstant{&h.StartedAt}, &h.Status, &h.Reason, &h.Result, &h.Error,
			instant{&h.FinishedAt}, &h.RerunID)
	})
	return found, s.explain(err)
}

// inside is the context of a statement of an open transaction. mattn/go-sqlite3, whose statements are kept prepared, hands every
// row of a query that can be cancelled through a goroutine of its own, which costs as much as the row. Nothing is waited for
// there any more: the transaction has its lock.
func (s *store) inside(ctx context.Context) context.Context {
	if s.statements != nil {
		return context.WithoutCancel(ctx)
	}
	return ctx
}

// work is what the statements are executed on that the dispatcher needs all the time: tx or, where it is nil, the pool.
func (s *store) work(tx *sql.Tx) dialect.Conn {
	switch {
	case s.statements != nil:
		return s.statements.On(tx)
	case tx != nil:
		return tx
	}
	return s.pool
}

// lockWriter waits until no other statement or transactional run of this dispatcher writes, where one transaction at a time
// can: left to collide, they would sleep in the database's busy handler, most of the time longer than the other takes, and
// whoever writes in quick succession would starve the others.
func (s *store) lockWriter(ctx context.Context) (over func(), err error) {
	if !s.d.Serial() {
		return func() {}, nil
	}
	select {
	case s.turn <- struct{}{}:
		return func() { <-s.turn }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// now is the database's clock.
func (s *store) now(ctx context.Context) (_ time.Time, err error) {
	defer caught(&err)
	text, err := s.d.Clock(ctx, s.pool)
	if err != nil {
		return time.Time{}, err
	}
	var t time.Time
	err = instant{&t}.Scan(text)
	return t, err
}

// wait sleeps, unless ctx ends.
func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
