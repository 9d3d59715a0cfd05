package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

// runAsync runs the plugin for tests that look at what Run returns.
func runAsync(t *testing.T, p *outbox.Plugin) (cancel func(), done <-chan error) {
	t.Helper()
	ctx, end := context.WithCancel(context.Background())
	t.Cleanup(end)
	c := make(chan error, 1)
	go func() { c <- p.Run(ctx) }()
	return end, c
}

func TestTimeout(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		started, leave := make(chan int, 10), make(chan struct{})
		refused := make(chan error, 10)
		opts := quick(finishHook(func(_ *outbox.TaskModel, f outbox.Outcome) { refused <- f.Err }))
		opts.Concurrency, opts.CancelGrace = 1, 50*time.Millisecond
		p := dbtest.Install(t, db, opts, func(p *outbox.Plugin) {
			p.Handle("obeys", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
			p.Handle("obeys.tx", func(ctx context.Context, tx *gorm.DB) error { <-ctx.Done(); return ctx.Err() })
			p.Handle("ignores", func(ctx context.Context) error { started <- 1; <-leave; return nil })
			p.Handle("next", func(ctx context.Context) error { started <- 2; return nil })
		})
		dbtest.Start(t, p)
		for _, path := range []string{"obeys", "obeys.tx"} {
			t.Run(path+" and is tried again", func(t *testing.T) {
				past := dbtest.Ended(t, db, dbtest.Create(t, db, path, nil, outbox.Timeout(20*time.Millisecond), outbox.MaxAttempts(2)).ID)
				if past.Status != outbox.StatusError || past.Reason != outbox.ReasonTimeout || past.Attempt-past.Uncounted != 2 || past.Errors[0].Reason != outbox.ReasonTimeout {
					t.Errorf("%+v", past)
				}
			})
		}
		t.Run("ignored: ends, is not tried again, and keeps its slot", func(t *testing.T) {
			hung := dbtest.Create(t, db, "ignores", nil, outbox.Timeout(20*time.Millisecond), outbox.MaxAttempts(3))
			if dbtest.Receive(t, started) != 1 {
				t.Fatal("the wrong task runs")
			}
			past := dbtest.Ended(t, db, hung.ID)
			if past.Status != outbox.StatusError || past.Reason != outbox.ReasonTimeout || past.Attempt != 1 {
				t.Errorf("%+v", past)
			}
			next := dbtest.Create(t, db, "next", nil)
			select {
			case <-started:
				t.Error("the slot was given away while the handler was running")
			case <-time.After(300 * time.Millisecond):
			}
			close(leave)
			if dbtest.Receive(t, started) != 2 {
				t.Error("the task was run again")
			}
			dbtest.Ended(t, db, next.ID)
			if after := dbtest.Ended(t, db, hung.ID); after.Status != outbox.StatusError || after.Version != past.Version {
				t.Errorf("the late outcome was stored: %+v", after)
			}
		})
	})
}

// finishHook is a Hooks of one function.
type finishHook func(*outbox.TaskModel, outbox.Outcome)

func (finishHook) OnCreate(context.Context, *outbox.TaskModel) error { return nil }
func (finishHook) OnStart(ctx context.Context, _ *outbox.TaskModel) context.Context {
	return ctx
}
func (h finishHook) OnFinish(_ context.Context, task *outbox.TaskModel, f outbox.Outcome) { h(task, f) }

func TestShutdown(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		started, leave := make(chan string, 10), make(chan struct{})
		opts := quick()
		opts.ShutdownGrace, opts.CancelGrace = 100*time.Millisecond, 100*time.Millisecond
		opts.Heartbeat, opts.HeartbeatLimit = 200*time.Millisecond, time.Second
		p := dbtest.Install(t, db, opts, func(p *outbox.Plugin) {
			p.Handle("waits", func(ctx context.Context) error { started <- ""; <-leave; return ctx.Err() })
			p.Handle("obeys", func(ctx context.Context) error { started <- ""; <-ctx.Done(); return ctx.Err() })
			p.Handle("obeys.repeatable", func(ctx context.Context) error { started <- ""; <-ctx.Done(); return ctx.Err() }, outbox.Idempotent())
			p.Handle("obeys.tx", func(ctx context.Context, _ *gorm.DB) error { started <- ""; <-ctx.Done(); return ctx.Err() })
			p.Handle("ignores", func(ctx context.Context) error { started <- ""; <-leave; return nil })
			p.Handle("ignores.repeatable", func(ctx context.Context) error { started <- ""; <-leave; return nil }, outbox.Idempotent())
		})
		shutDown := func(t *testing.T, path string) (*outbox.TaskModel, *outbox.HistoryModel, error) {
			cancel, done := runAsync(t, p)
			task := dbtest.Create(t, db, path, nil)
			dbtest.Receive(t, started)
			cancel()
			err := dbtest.Receive(t, done)
			waiting, past, lookup := outbox.Lookup(db, task.ID)
			if lookup != nil {
				t.Fatal(lookup)
			}
			if waiting != nil {
				if err := outbox.Cancel(db, task.ID); err != nil {
					t.Errorf("what went back cannot be cancelled: %v", err)
				}
			}
			if n := dbtest.Count(t, db, &outbox.ProcessModel{}); n != 0 {
				t.Errorf("%d process rows are left", n)
			}
			return waiting, past, err
		}
		t.Run("an obedient handler's outcome is recorded", func(t *testing.T) {
			if _, past, err := shutDown(t, "obeys"); err != nil || past == nil || past.Status != outbox.StatusError {
				t.Errorf("%v, %+v", err, past)
			}
		})
		for _, path := range []string{"obeys.repeatable", "obeys.tx"} {
			t.Run(path+" goes back uncounted", func(t *testing.T) {
				if waiting, _, err := shutDown(t, path); err != nil || waiting == nil || waiting.State != outbox.StatePending || waiting.Uncounted != 1 {
					t.Errorf("%v, %+v", err, waiting)
				}
			})
		}
		t.Run("a deaf handler is recorded as interrupted", func(t *testing.T) {
			if _, past, err := shutDown(t, "ignores"); err == nil || past == nil || past.Reason != outbox.ReasonInterrupted {
				t.Errorf("%v, %+v", err, past)
			}
		})
		t.Run("a deaf repeatable handler goes back", func(t *testing.T) {
			if waiting, _, err := shutDown(t, "ignores.repeatable"); err == nil || waiting == nil || waiting.State != outbox.StatePending {
				t.Errorf("%v, %+v", err, waiting)
			}
		})
		close(leave)
		t.Run("a handler that ends within the grace has ended", func(t *testing.T) {
			if _, past, err := shutDown(t, "waits"); err != nil || past == nil || past.Status != outbox.StatusSuccess {
				t.Errorf("%v, %+v", err, past)
			}
		})
	})
}

// slowToCheck are arguments whose check takes longer than the grace of a shutdown.
type slowToCheck struct{}

var checking = make(chan struct{}, 1) // of one database at a time

func (slowToCheck) Validate() error {
	checking <- struct{}{}
	<-time.After(300 * time.Millisecond)
	return nil
}

// The run has begun before the shutdown, and its handler would start after the grace: the task goes
// back.
func TestShutdownBeforeTheHandlerStarts(t *testing.T) {
	dbtest.EachInTurn(t, func(t *testing.T, db *gorm.DB) {
		opts := quick()
		opts.ShutdownGrace, opts.CancelGrace = 100*time.Millisecond, 100*time.Millisecond
		called := false
		p := dbtest.Install(t, db, opts, func(p *outbox.Plugin) {
			p.Handle("deaf", func(context.Context, slowToCheck) error { called = true; return nil })
		})
		task := dbtest.Create(t, db, "deaf", slowToCheck{})
		dbtest.Receive(t, checking) // by Create
		cancel, done := runAsync(t, p)
		dbtest.Receive(t, checking) // by the run
		cancel()
		if err := dbtest.Receive(t, done); err != nil || called {
			t.Errorf("Run: %v; the handler was called: %v", err, called)
		}
		if waiting, _, err := outbox.Lookup(db, task.ID); err != nil || waiting == nil || waiting.State != outbox.StatePending || waiting.Uncounted != 1 {
			t.Errorf("%v, %+v", err, waiting)
		}
	})
}

// endsLate is a context whose end the handler sees before the contexts that were made from it have
// ended: for a moment every context is like that.
type endsLate struct {
	context.Context
	done chan struct{}
}

func (c endsLate) Done() <-chan struct{}               { return c.done }
func (c endsLate) AfterFunc(func()) (stop func() bool) { return func() bool { return true } }

type endsLateHook struct{ outbox.NopHooks }

func (endsLateHook) OnStart(ctx context.Context, _ *outbox.TaskModel) context.Context {
	c := endsLate{ctx, make(chan struct{})}
	context.AfterFunc(ctx, func() { close(c.done) })
	return c
}

// A transactional handler that returns nil because its context has ended has not succeeded, however
// late its transaction learns of that.
func TestShutdownIsSeenByTheHandlerFirst(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		started := make(chan string, 1)
		opts := quick()
		opts.ShutdownGrace, opts.Hooks = time.Millisecond, []outbox.Hooks{endsLateHook{}}
		p := dbtest.Install(t, db, opts, func(p *outbox.Plugin) {
			p.Handle("obeys.tx", func(ctx context.Context, _ *gorm.DB) error { started <- ""; <-ctx.Done(); return nil })
		})
		cancel, done := runAsync(t, p)
		task := dbtest.Create(t, db, "obeys.tx", nil)
		dbtest.Receive(t, started)
		cancel()
		if err := dbtest.Receive(t, done); err != nil {
			t.Error(err)
		}
		waiting, past, err := outbox.Lookup(db, task.ID)
		if err != nil || waiting == nil || waiting.State != outbox.StatePending || waiting.Uncounted != 1 {
			t.Errorf("it should wait to be run again: %v, %+v, %+v", err, waiting, past)
		}
	})
}

// Where one transaction at a time can write, a claim waits for its turn while a transactional
// handler runs. A shutdown does not wait with it.
func TestShutdownWhileAClaimWaitsForItsTurn(t *testing.T) {
	db := testdb.SQLite(t) // and not in parallel: whose goroutine is it that waits?
	started, leave := make(chan string, 1), make(chan struct{})
	opts := quick()
	opts.ShutdownGrace, opts.Heartbeat, opts.HeartbeatLimit = time.Millisecond, time.Minute, time.Hour // a third of it for a statement
	p := dbtest.Install(t, db, opts, func(p *outbox.Plugin) {
		p.Handle("plain", func(context.Context) error { return nil })
		p.Handle("obeys.tx", func(ctx context.Context, _ *gorm.DB) error {
			started <- ""
			select {
			case <-ctx.Done():
			case <-leave:
			}
			return ctx.Err()
		})
	})
	defer close(leave)
	cancel, done := runAsync(t, p)
	// While one runs, the other is due, and so might a plain one be.
	if _, err := outbox.CreateBatch(db, outbox.NewTask{Func: "obeys.tx"}, outbox.NewTask{Func: "obeys.tx"}); err != nil {
		t.Fatal(err)
	}
	dbtest.Receive(t, started)
	dbtest.Eventually(t, "a claim waits for its turn", func() bool {
		stacks := make([]byte, 1<<20)
		for _, stack := range strings.Split(string(stacks[:runtime.Stack(stacks, true)]), "\n\n") {
			if strings.Contains(stack, "LockWriter") && strings.Contains(stack, "(*dispatcher).loop") {
				return true
			}
		}
		return false
	})
	cancel()
	if err := dbtest.Receive(t, done); err != nil {
		t.Error(err)
	}
	if n := dbtest.Count(t, db, &outbox.TaskModel{}); n != 2 {
		t.Errorf("%d tasks wait to be run again, want both", n)
	}
}

func TestRunIsOneAtATimeAndCanBeRepeated(t *testing.T) {
	dbtest.EachInTurn(t, func(t *testing.T, db *gorm.DB) {
		if err := outbox.New(outbox.Options{}).Run(t.Context()); !errors.Is(err, outbox.ErrNotInstalled) {
			t.Errorf("before Use: %v", err)
		}
		p := dbtest.Install(t, db, quick(), func(p *outbox.Plugin) {
			p.Handle("plain", func(context.Context) error { return nil })
			p.Handle("plain.tx", func(context.Context, *gorm.DB) error { return nil })
		})
		cancelled, cancel := context.WithCancel(t.Context())
		cancel()
		if err := p.Run(cancelled); err != nil {
			t.Errorf("cancelled before the start: %v", err)
		}
		pool, err := db.DB()
		if err != nil {
			t.Fatal(err)
		}
		before := runtime.NumGoroutine()
		for range 2 {
			stop := dbtest.Start(t, p)
			dbtest.Ended(t, db, dbtest.Create(t, db, "plain", nil).ID)
			dbtest.Ended(t, db, dbtest.Create(t, db, "plain.tx", nil).ID)
			if err := p.Run(t.Context()); err == nil {
				t.Error("a second Run was accepted")
			}
			stop()
		}
		dbtest.Eventually(t, "every goroutine is gone", func() bool {
			pool.SetMaxIdleConns(1)
			return runtime.NumGoroutine() <= before+2 && pool.Stats().InUse == 0
		})
	})
}

func TestOrderOfDueTasks(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		var mu sync.Mutex
		var order []string
		opts := quick()
		opts.Concurrency, opts.Queues, opts.Scan = 1, []string{"a", "b"}, "@every 1h"
		p := dbtest.Install(t, db, opts, func(p *outbox.Plugin) {
			p.Handle("note", func(_ context.Context, g greeting) error {
				mu.Lock()
				defer mu.Unlock()
				order = append(order, g.Name)
				return nil
			})
		})
		var last string
		note := func(name string, opts ...outbox.CreateOption) {
			last = dbtest.Create(t, db, "note", greeting{Name: name}, opts...).ID
		}
		at := func(hours int) outbox.CreateOption {
			return outbox.StartAt(time.Now().Add(-time.Duration(hours) * time.Hour))
		}
		note("late", outbox.Queue("a"), outbox.Priority(3), at(1))
		note("early", outbox.Queue("a"), outbox.Priority(3), at(2))
		note("first", outbox.Queue("b"), outbox.Priority(1), at(0))
		note("third", outbox.Queue("a"), outbox.Priority(2), at(9))
		for i := range 6 {
			note(fmt.Sprint("A", i), outbox.Queue("a"), outbox.Priority(4))
			note(fmt.Sprint("B", i), outbox.Queue("b"), outbox.Priority(4))
		}
		note("elsewhere", outbox.Queue("c"), outbox.Priority(1))
		dbtest.Start(t, p)
		dbtest.Eventually(t, "all but one have run", func() bool { return dbtest.Count(t, db, &outbox.TaskModel{}) == 1 })
		if task, _, err := outbox.Lookup(db, last); err != nil || task == nil || task.State != outbox.StatePending {
			t.Errorf("another queue's task: %+v, %v", task, err)
		}
		mu.Lock()
		defer mu.Unlock()
		queues := map[string][]string{
			"a": {"third", "early", "late", "A0", "A1", "A2", "A3", "A4", "A5"},
			"b": {"first", "B0", "B1", "B2", "B3", "B4", "B5"},
		}
		queueOf := func(name string) string {
			if slices.Contains(queues["a"], name) {
				return "a"
			}
			return "b"
		}
		got := map[string][]string{}
		for i, inARow := 0, 0; i < len(order); i++ {
			q := queueOf(order[i])
			if got[q] = append(got[q], order[i]); i > 0 && queueOf(order[i-1]) == q {
				inARow++
			} else {
				inARow = 1
			}
			// A claim that finds a priority of the other queue empty has used up its turn.
			if others := map[string]string{"a": "b", "b": "a"}[q]; inARow > 3 && len(got[others]) < len(queues[others]) {
				t.Errorf("queue %s waits for queue %s: %v", others, q, order)
				break
			}
		}
		for q, want := range queues {
			if !slices.Equal(got[q], want) {
				t.Errorf("order of queue %s: %v, want %v", q, got[q], want)
			}
		}
	})
}

func TestRunDue(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		frozen := time.Now().UTC().Truncate(time.Millisecond)
		opts := quick()
		opts.Clock = func() time.Time { return frozen }
		p := dbtest.Install(t, db, opts, func(p *outbox.Plugin) {
			p.Handle("plain", func(context.Context) error { return nil })
			p.Handle("plain.tx", func(context.Context, *gorm.DB) error { return nil })
			p.Handle("fails", func(context.Context) error { return errors.New("no") })
			p.Handle("snoozes", func(context.Context) error { return outbox.Snooze(0) })
			p.Handle("makes", func(_ context.Context, tx *gorm.DB) error {
				_, err := outbox.Create(tx, "plain", nil, outbox.StartAfter(time.Second))
				return err
			})
		})
		for range 60 {
			dbtest.Create(t, db, "plain.tx", nil)
			dbtest.Create(t, db, "plain", nil)
		}
		later := dbtest.Create(t, db, "plain", nil, outbox.StartAfter(time.Minute))
		dbtest.Create(t, db, "makes", nil)
		failing := dbtest.Create(t, db, "fails", nil, outbox.MaxAttempts(3))
		snoozing := dbtest.Create(t, db, "snoozes", nil)
		// Bounded, because a task that comes back at once on a clock that stands still must not
		// keep it for ever.
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		if n, err := p.RunDue(ctx); err != nil || n != 123 {
			t.Errorf("ran %d, %v; want 123", n, err)
		}
		for _, id := range []string{failing.ID, snoozing.ID, later.ID} {
			if task, past, err := outbox.Lookup(db, id); err != nil || task == nil || task.State != outbox.StatePending {
				t.Errorf("left for later: %+v, %+v, %v", task, past, err)
			}
		}
		if n := dbtest.Count(t, db, &outbox.TaskModel{}); n != 4 {
			t.Errorf("%d tasks wait, want 4", n)
		}
		frozen = frozen.Add(2 * time.Second)
		if n, err := p.RunDue(ctx); err != nil || n != 3 {
			t.Errorf("then ran %d, %v; want 3", n, err)
		}
		ended2, stop := context.WithCancel(ctx)
		stop()
		if _, err := p.RunDue(ended2); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
	})
}
