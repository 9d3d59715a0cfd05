package outbox

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/gorm-outbox/outbox/internal/dialect"
)

// The statements that change state are here and in internal/dialect, where those stand that databases write differently.
// Each names the state that it leaves, or the fence, in its WHERE; its caller looks at what it changed.

// explain adds to an error what the user can do about it.
func (s *store) explain(err error) error {
	if dialect.Classify(err) == dialect.Missing {
		return fmt.Errorf("%w: call Migrate, or apply what Schema(%q) prints: %w", ErrSchema, s.d.Name(), err)
	}
	return err
}

// migrate creates or updates the tables in one transaction that excludes every other migration.
func (s *store) migrate(ctx context.Context) error {
	for try := 1; ; try++ {
		// Not ctx's transaction, or its end would leave a connection with the lock on it in the pool.
		err := s.inTx(context.WithoutCancel(ctx), func(tx *sql.Tx) error {
			if err := s.d.Check(ctx, tx); err != nil {
				return err
			}
			if err := s.d.Lock(ctx, tx); err != nil {
				return err
			}
			defer s.d.Unlock(context.WithoutCancel(ctx), tx)
			version, err := s.version(ctx, tx)
			if err != nil || version == dialect.Version {
				return err
			}
			if version > dialect.Version {
				return fmt.Errorf("%w: the tables are of version %d, newer than this program's %d", ErrSchema, version, dialect.Version)
			}
			for _, statement := range s.d.Schema() {
				if _, err := tx.ExecContext(ctx, statement); err != nil {
					return fmt.Errorf("%w\n%s", err, statement)
				}
			}
			return nil
		})
		class := dialect.Classify(err)
		if err == nil || class != dialect.Busy && class != dialect.Retry || try == 200 {
			return err
		}
		if wait(ctx, 50*time.Millisecond) != nil {
			return err
		}
	}
}

// version of the tables; 0 means that there are none.
func (s *store) version(ctx context.Context, c dialect.Conn) (int, error) {
	there, err := s.d.HasTable(ctx, c)
	if err != nil || !there {
		return 0, err
	}
	var version int
	err = s.query(ctx, c, "SELECT coalesce(max(version), 0) FROM {version}", nil, func(r *sql.Rows) error {
		return r.Scan(&version)
	})
	return version, err
}

// checkSchema fails when the tables are not of this program's version.
func (s *store) checkSchema(ctx context.Context) error {
	if err := s.d.Check(ctx, s.pool); err != nil {
		return err
	}
	version, err := s.version(ctx, s.pool)
	if err != nil {
		return err
	}
	if version != dialect.Version {
		found := fmt.Sprintf("are of version %d", version)
		if version == 0 {
			found = "are missing"
		}
		return fmt.Errorf("%w: the tables %s, this program needs version %d: call Migrate, or apply what Schema(%q) prints",
			ErrSchema, found, dialect.Version, s.d.Name())
	}
	return nil
}

// inTx runs f in a transaction of the pool's own.
func (s *store) inTx(ctx context.Context, f func(*sql.Tx) error) error {
	if s.kept != nil {
		s.kept.prepare(ctx)
	}
	tx, err := s.pool.BeginTx(ctx, &sql.TxOptions{Isolation: s.d.Isolation()})
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if err := f(tx); err != nil {
		return err
	}
	return tx.Commit()
}

func (s *store) query(ctx context.Context, c dialect.Conn, query string, params []any, each func(*sql.Rows) error) error {
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

func (s *store) exec(ctx context.Context, c dialect.Conn, query string, params ...any) (int64, error) {
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

// claim takes due tasks for a process, at most limit in all by the claims of a plan one after the other. It reports
// whether one of them was full. A row that cannot be read comes back as a task with id and version only, and an error
// that says why.
func (s *store) claim(ctx context.Context, plan []dialect.ClaimParams, limit int) (list []claimed, full bool, err error) {
	done, err := s.takeTurn(ctx)
	if err != nil {
		return nil, false, err
	}
	defer done()
	if s.d.OneStatement() || len(plan) == 1 && len(plan[0].Lanes) == 1 {
		list, full, err = s.claimIn(ctx, s.work(nil), plan, limit)
	} else {
		err = s.inTx(ctx, func(tx *sql.Tx) (err error) {
			list, full, err = s.claimIn(ctx, s.work(tx), plan, limit)
			return err
		})
	}
	if err != nil {
		return nil, false, err // what was read of a claim that failed is not ours
	}
	return list, full, nil
}

func (s *store) claimIn(ctx context.Context, c dialect.Conn, plan []dialect.ClaimParams, limit int) (list []claimed, full bool, err error) {
	for _, p := range plan {
		before := len(list)
		if p.Limit = min(p.Limit, limit-before); p.Limit == 0 {
			full = true
			continue
		}
		var scan claimScan
		err := s.d.Claim(ctx, c, p, func(r dialect.Row) error {
			list = append(list, scan.claimed(r))
			return nil
		})
		if err != nil {
			return nil, false, err
		}
		full = full || len(list)-before == p.Limit
	}
	return list, full, nil
}

// apart is from how many outcomes on they are finished and the next tasks claimed by a transaction each, where one statement
// might do both. A claim locks rows that others have claimed since its snapshot, SKIP LOCKED or not: it follows a row to its newest
// version and locks that before it looks at the state again. In one statement with a finish of many rows it does so with most of
// what the other writer has just claimed, whose next exchange then waits for the end of this one. For fewer the second commit
// costs more than this.
const apart = 200

// exchanger is what might finish these and claim in one statement; nil where nothing can.
func (s *store) exchanger(requeued []dialect.Requeued) dialect.Exchanger {
	if d, ok := s.d.(dialect.Exchanger); ok && len(requeued) == 0 {
		return d
	}
	return nil
}

// finish writes outcomes as write does, where there is an exchanger.
func (s *store) finish(ctx context.Context, d dialect.Exchanger, outcomes []dialect.Outcome) (done fenced, err error) {
	moved, all, err := d.Finish(ctx, s.pool, outcomes)
	return fencedBy(moved, all), err
}

// exchange is write and claim in one transaction.
func (s *store) exchange(ctx context.Context, outcomes []dialect.Outcome, requeued []dialect.Requeued, plan []dialect.ClaimParams, limit int) (
	done fenced, list []claimed, full bool, err error,
) {
	if d := s.exchanger(requeued); d != nil && len(plan) == 1 {
		p := plan[0]
		p.Limit = min(p.Limit, limit)
		var scan claimScan
		moved, all, err := d.Exchange(ctx, s.pool, outcomes, p, func(r dialect.Row) error {
			list = append(list, scan.claimed(r))
			return nil
		})
		if err != nil {
			return fenced{}, nil, false, err
		}
		return fencedBy(moved, all), list, len(list) == p.Limit, nil
	}
	over, err := s.takeTurn(ctx)
	if err != nil {
		return fenced{}, nil, false, err
	}
	defer over()
	err = s.inTx(ctx, func(tx *sql.Tx) (err error) {
		ctx := s.inside(ctx)
		if done.ids, err = s.writeIn(ctx, s.work(tx), outcomes, requeued); err == nil {
			list, full, err = s.claimIn(ctx, s.work(tx), plan, limit)
		}
		return err
	})
	if err != nil {
		return fenced{}, nil, false, err
	}
	return done, list, full, nil
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

// inside is the context of a statement of an open transaction. mattn/go-sqlite3, whose statements are kept prepared, hands every
// row of a query that can be cancelled through a goroutine of its own, which costs as much as the row. Nothing is waited for
// there any more: the transaction has its lock.
func (s *store) inside(ctx context.Context) context.Context {
	if s.kept != nil {
		return context.WithoutCancel(ctx)
	}
	return ctx
}

// takeTurn waits until no other statement or transactional run of this dispatcher writes, where one transaction at a time
// can: left to collide, they would sleep in the database's busy handler, most of the time longer than the other takes, and
// whoever writes in quick succession would starve the others.
func (s *store) takeTurn(ctx context.Context) (over func(), err error) {
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

type claimed struct {
	task *TaskModel
	err  error
}

// claimScan reads the rows of one statement. The zero value is ready.
type claimScan struct {
	task TaskModel
	dest []any // its fields
}

func (s *claimScan) claimed(r dialect.Row) claimed {
	if s.dest == nil {
		s.dest = taskDest(&s.task)
	}
	s.task = TaskModel{}
	err := r.Scan(s.dest...)
	if err == nil {
		t := s.task
		return claimed{task: &t}
	}
	// Somebody wrote into the row what its types do not hold, as SQLite allows. Fetch what can be fetched.
	loose := new(TaskModel)
	dest := make([]any, len(dialect.Columns))
	for i, column := range dialect.Columns {
		switch column {
		case "id":
			dest[i] = &loose.ID
		case "version":
			dest[i] = &loose.Version
		default:
			dest[i] = new(any)
		}
	}
	if again := r.Scan(dest...); again != nil {
		err = errors.Join(err, again)
	}
	loose.MaxAttempts, loose.Attempt = 1, 1
	return claimed{task: loose, err: fmt.Errorf("the row cannot be read: %w", err)}
}

// process rows

// now is the database's clock.
func (s *store) now(ctx context.Context) (time.Time, error) {
	text, err := s.d.Clock(ctx, s.pool)
	if err != nil {
		return time.Time{}, err
	}
	var t time.Time
	err = instant{&t}.Scan(text)
	return t, err
}

// write makes outcomes and requeues durable, in one transaction where the database needs one, and returns the ids that
// the fence let through.
func (s *store) write(ctx context.Context, outcomes []dialect.Outcome, requeued []dialect.Requeued) (map[string]bool, error) {
	var done map[string]bool
	if s.d.OneStatement() && (len(outcomes) == 0 || len(requeued) == 0) {
		return s.writeIn(ctx, s.work(nil), outcomes, requeued)
	}
	over, err := s.takeTurn(ctx)
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
	over, err := s.takeTurn(ctx)
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

// landed tells which of some outcomes are in history already, written by a statement whose reply was lost.
func (s *store) landed(ctx context.Context, outcomes []dialect.Outcome) (map[string]bool, error) {
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
// version, too, but another status or reason.
func (h *HistoryModel) is(o dialect.Outcome) bool {
	return h != nil && h.Version == *o.Version && string(h.Status) == o.Status && string(h.Reason) == o.Reason
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
