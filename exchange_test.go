package outbox_test

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dialect"
	"github.com/gorm-outbox/outbox/testutil"
)

// An exchange of many locks nothing that others claim while it finishes. A claim follows a row that somebody has claimed since its
// snapshot to the new version, and locks it before it sees that it is not pending any more; in one statement with a finish
// that takes its time, it would keep their outcomes waiting for its commit.
func TestExchange(t *testing.T) {
	t.Parallel()
	db, err := sql.Open("pgx", testutil.PostgresDSN(t))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	d, err := dialect.New("postgres", dialect.Names{Tasks: "tasks", History: "history", Processes: "processes", Audit: "audit", Version: "version",
		Index: func(table, what string) string { return table + "_" + what }}, nil)
	if err != nil {
		t.Fatal(err)
	}
	exec := func(c dialect.Conn, query string, args ...any) {
		t.Helper()
		if _, err := c.ExecContext(ctx, query, args...); err != nil {
			t.Fatalf("%v\n%s", err, query)
		}
	}
	for _, s := range d.Schema() {
		exec(db, s)
	}
	exec(db, `INSERT INTO processes (id, host, pid, functions, slots, started_at, beat_at, beats) VALUES ('p', 'h', 1, '["a.b"]', 1, now(), now(), 1)`)
	exec(db, `INSERT INTO tasks (id, func, args, queue, priority, run_at, state, attempt, uncounted, crashes, max_attempts, timeout_ms, repeatable, version, created_at)
		SELECT 'id-' || i, 'a.b', '{}', 'default', 2, now() - interval '1 hour' + i * interval '1 second', 'pending', 0, 0, 0, 1, 0, false, 1, now()
		FROM generate_series(100, 129) i`)
	claim := func(limit int) dialect.ClaimParams {
		return dialect.ClaimParams{Process: "p", Lanes: []dialect.Lane{{Queue: "default", Priority: 2}}, Funcs: []string{"a.b"}, Limit: limit}
	}
	collect := func(ids *[]string) func(dialect.Row) error {
		return func(r dialect.Row) error {
			var id string
			dest := make([]any, len(dialect.Columns))
			for i := range dest {
				dest[i] = new(any)
			}
			dest[0] = &id
			err := r.Scan(dest...)
			*ids = append(*ids, id)
			return err
		}
	}
	var own []string
	if err := d.Claim(ctx, db, claim(10), collect(&own)); err != nil || len(own) != 10 {
		t.Fatalf("%d claimed, %v", len(own), err)
	}
	var outcomes []dialect.Outcome
	version := int64(2)
	for _, id := range own {
		outcomes = append(outcomes, dialect.Outcome{ID: id, Version: &version, Status: "success"})
	}

	begin := func() *sql.Tx {
		t.Helper()
		tx, err := db.BeginTx(ctx, &sql.TxOptions{Isolation: d.Isolation()})
		if err != nil {
			t.Fatal(err)
		}
		return tx
	}
	lock := begin()
	defer lock.Rollback()
	exec(lock, "SELECT 1 FROM tasks WHERE id = $1 FOR UPDATE", own[0])
	exchange := begin()
	defer exchange.Rollback()
	var fresh []string
	done := make(chan error, 1)
	go func() {
		moved, all, err := d.(dialect.Exchanger).Finish(ctx, exchange, outcomes)
		if err == nil && !all {
			t.Errorf("only %v were moved", moved)
		}
		if err == nil {
			err = d.Claim(ctx, exchange, claim(10), collect(&fresh))
		}
		done <- err
	}()
	eventually(t, "the finish waits", func() bool {
		var waiting int
		err := db.QueryRowContext(ctx, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'").Scan(&waiting)
		return err == nil && waiting > 0
	})
	var others []string
	if err := d.Claim(ctx, db, claim(10), collect(&others)); err != nil || len(others) != 10 {
		t.Fatalf("%d claimed beside the exchange, %v", len(others), err)
	}
	if err := lock.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if len(fresh) != 10 || slices.ContainsFunc(fresh, func(id string) bool { return slices.Contains(others, id) }) {
		t.Errorf("the exchange claimed %v, the claim beside it %v", fresh, others)
	}
	if _, err := db.ExecContext(ctx, "SELECT 1 FROM tasks WHERE id = ANY ($1) FOR UPDATE NOWAIT", others); err != nil {
		t.Errorf("the exchange has locked what it did not claim: %v", err)
	}
	if err := exchange.Commit(); err != nil {
		t.Fatal(err)
	}

	// Which tasks were moved is told one by one when a claim among them was lost.
	lost := int64(1)
	outcomes = nil
	for _, id := range fresh {
		outcomes = append(outcomes, dialect.Outcome{ID: id, Version: &version, Status: "success"})
	}
	outcomes[3].Version = &lost
	listed := func(moved []string, all bool, err error) {
		t.Helper()
		if want := slices.Delete(slices.Clone(fresh), 3, 4); err != nil || all || !slices.Equal(slices.Sorted(slices.Values(moved)), slices.Sorted(slices.Values(want))) {
			t.Errorf("%v were moved, all %v, %v; want %v", moved, all, err, want)
		}
	}
	undone := begin()
	listed(d.(dialect.Exchanger).Finish(ctx, undone, outcomes))
	if err := undone.Rollback(); err != nil {
		t.Fatal(err)
	}
	listed(d.(dialect.Exchanger).Exchange(ctx, db, outcomes, claim(1), func(dialect.Row) error { return nil }))
}

// failingExchange does what it should and fails, every third time that it claims in a transaction.
type failingExchange struct {
	dialect.Dialect
	dialect.Exchanger
	claims *atomic.Int64
}

func (f failingExchange) Claim(ctx context.Context, c dialect.Conn, p dialect.ClaimParams, each func(dialect.Row) error) error {
	err := f.Dialect.Claim(ctx, c, p, each)
	if _, inTx := c.(*sql.Tx); inTx && err == nil && f.claims.Add(1)%3 == 0 {
		err = errors.New("this exchange fails")
	}
	return err
}

// A finish of many and the claim that follows it are one: after a failure nothing of both stays.
func TestExchangeOfManyIsOne(t *testing.T) {
	const tasks, slots = 3000, 600
	db := testutil.Postgres(t)
	var log logBuffer
	opts := quick()
	opts.Concurrency, opts.Logger = slots, log.logger()
	runs := make([]atomic.Int64, tasks)
	p := install(t, db, opts, func(p *outbox.Plugin) {
		p.Handle("count", func(_ context.Context, a struct{ N int }) error { runs[a.N].Add(1); return nil })
	})
	batch := make([]outbox.NewTask, tasks)
	for i := range batch {
		batch[i] = outbox.NewTask{Func: "count", Args: outbox.Args{"N": i}}
	}
	if _, err := outbox.CreateBatch(db, batch...); err != nil {
		t.Fatal(err)
	}
	var claims atomic.Int64
	p.Intercept(func(d dialect.Dialect) dialect.Dialect { return failingExchange{d, d.(dialect.Exchanger), &claims} })
	start(t, p)
	eventually(t, "all have ended", func() bool { return count(t, db, &outbox.HistoryModel{}) == tasks })
	for i := range runs {
		if n := runs[i].Load(); n != 1 {
			t.Errorf("task %d ran %d times", i, n)
		}
	}
	if n, lost := claims.Load(), log.lines("claim lost"); n < 3 || lost > 0 {
		t.Errorf("after %d claims in exchanges %d were lost", n, lost)
	}
}
