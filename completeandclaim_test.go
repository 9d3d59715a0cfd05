package outbox_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
	"github.com/gorm-outbox/outbox/internal/dialect"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

// Which tasks were moved is told for all of them, or one by one when a claim among them was lost.
func TestCompleteAndClaim(t *testing.T) {
	t.Parallel()
	db, err := sql.Open("pgx", testdb.PostgresDSN(t))
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
	claim := dialect.ClaimParams{Process: "p", Partitions: []dialect.Partition{{Queue: "default", Priority: 2}}, Funcs: []string{"a.b"}, Limit: 10}
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
	if err := d.Claim(ctx, db, claim, collect(&own)); err != nil || len(own) != 10 {
		t.Fatalf("%d claimed, %v", len(own), err)
	}
	version, lost := int64(2), int64(1)
	succeeded := func(ids []string) (list []dialect.Outcome) {
		for _, id := range ids {
			list = append(list, dialect.Outcome{ID: id, Version: &version, Process: "p", Status: "success"})
		}
		return list
	}
	outcomes := succeeded(own)
	outcomes[3].Version, outcomes[5].Process = &lost, "another"
	listed := func(moved []string, all bool, err error) {
		t.Helper()
		if want := slices.Delete(slices.Delete(slices.Clone(own), 5, 6), 3, 4); err != nil || all || !slices.Equal(slices.Sorted(slices.Values(moved)), slices.Sorted(slices.Values(want))) {
			t.Errorf("%v were moved, all %v, %v; want %v", moved, all, err, want)
		}
	}
	undone, err := db.BeginTx(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	listed(d.(dialect.Completer).Complete(ctx, undone, outcomes))
	if err := undone.Rollback(); err != nil {
		t.Fatal(err)
	}
	var fresh []string
	listed(d.(dialect.Completer).CompleteAndClaim(ctx, db, outcomes, claim, collect(&fresh)))
	if len(fresh) != 10 {
		t.Errorf("%d were claimed", len(fresh))
	}
	if moved, all, err := d.(dialect.Completer).Complete(ctx, db, succeeded(fresh)); err != nil || !all || len(moved) > 0 {
		t.Errorf("%v were moved, all %v, %v", moved, all, err)
	}
}

// losingReplies does what it should, and the reply of every third claim, from the second one on,
// and of every fourth finish, from the first one on, is lost.
type losingReplies struct {
	dialect.Dialect
	dialect.Completer
	claims, finishes *atomic.Int64
}

func (l losingReplies) Claim(ctx context.Context, c dialect.Conn, p dialect.ClaimParams, each func(dialect.Row) error) error {
	err := l.Dialect.Claim(ctx, c, p, each)
	if l.claims.Add(1)%3 == 2 && err == nil {
		err = driver.ErrBadConn
	}
	return err
}

func (l losingReplies) Complete(ctx context.Context, c dialect.Conn, rows []dialect.Outcome) (moved []string, all bool, err error) {
	moved, all, err = l.Completer.Complete(ctx, c, rows)
	if l.finishes.Add(1)%4 == 1 && err == nil {
		err = driver.ErrBadConn
	}
	return moved, all, err
}

// Of many, the finish and the claim that follows it succeed or fail each by itself.
func TestCompleteAndClaimOfMany(t *testing.T) {
	const tasks, slots = 3000, 600
	db := testdb.Postgres(t)
	var log logBuffer
	opts := quick()
	opts.Concurrency, opts.Logger = slots, log.logger()
	opts.Heartbeat, opts.HeartbeatLimit = 200*time.Millisecond, 20*time.Second
	runs := make([]atomic.Int64, tasks)
	var waiting, begun, claims, finishes atomic.Int64
	leave := make(chan struct{})
	defer close(leave)
	// However slow the machine is, many end together, and before a claim is lost, whose tasks would
	// have to be given back first.
	allRun := make(chan struct{})
	p := dbtest.Install(t, db, opts, func(p *outbox.Plugin) {
		p.Handle("count", func(_ context.Context, a struct{ N int }) error {
			runs[a.N].Add(1)
			if begun.Add(1) == slots {
				close(allRun)
			}
			<-allRun
			return nil
		})
		p.Handle("wait", func(context.Context) error { waiting.Add(1); <-leave; return nil })
	})
	batch := make([]outbox.NewTask, tasks)
	for i := range batch {
		batch[i] = outbox.NewTask{Func: "count", Args: outbox.Args{"N": i}}
	}
	if _, err := outbox.CreateBatch(db, batch...); err != nil {
		t.Fatal(err)
	}
	p.Intercept(func(d dialect.Dialect) dialect.Dialect {
		return losingReplies{d, d.(dialect.Completer), &claims, &finishes}
	})
	dbtest.Start(t, p)
	dbtest.Eventually(t, "all have ended", func() bool { return dbtest.Count(t, db, &outbox.HistoryModel{}) == tasks })
	for i := range runs {
		if n := runs[i].Load(); n != 1 {
			t.Errorf("task %d ran %d times", i, n)
		}
	}
	if claims, finishes, lost := claims.Load(), finishes.Load(), log.lines("claim lost"); claims == 0 || finishes == 0 || lost > 0 {
		t.Errorf("after %d claims and %d finishes %d claims were lost", claims, finishes, lost)
	}

	// No slot was lost or won.
	batch = make([]outbox.NewTask, slots+100)
	for i := range batch {
		batch[i].Func = "wait"
	}
	if _, err := outbox.CreateBatch(db, batch...); err != nil {
		t.Fatal(err)
	}
	dbtest.Eventually(t, "every slot is taken", func() bool { return waiting.Load() >= slots })
	<-time.After(200 * time.Millisecond) // many scans
	if n := waiting.Load(); n != slots {
		t.Errorf("%d run in %d slots", n, slots)
	}
}
