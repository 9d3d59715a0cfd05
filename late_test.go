package outbox_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
)

// A handler is called before its end is recorded, or not at all.

// A hook that takes longer than the task's time limit takes nothing from it.
func TestSlowOnStartIsNotPartOfTheTimeLimit(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		opts := quick(tracer{onStart: func(ctx context.Context, _ *outbox.TaskModel) context.Context {
			held(2200 * time.Millisecond)
			return ctx
		}})
		opts.CancelGrace = -1
		p := dbtest.Install(t, db, opts, func(p *outbox.Plugin) {
			f := func(ctx context.Context) (bool, error) { _, limited := ctx.Deadline(); return limited, ctx.Err() }
			p.Handle("plain", f)
			p.Handle("tx", func(ctx context.Context, _ *gorm.DB) (bool, error) { return f(ctx) })
		})
		dbtest.Start(t, p)
		for _, path := range []string{"plain", "tx"} {
			past := dbtest.Ended(t, db, dbtest.Create(t, db, path, nil, outbox.Timeout(2*time.Second)).ID)
			if past.Status != outbox.StatusSuccess || past.Result.String() != "true" {
				t.Errorf("%s: %s %s, %s: %s", path, past.Status, past.Reason, past.Result, text(past.Error))
			}
		}
	})
}

// A run may wait for a hook, or for its turn. When its process is declared dead meanwhile, its
// handler is not called.
func TestRunThatWaitedIsStillOurs(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		waiting, leave := make(chan string, 1), make(chan struct{})
		var calls, finished atomic.Int32
		opts := quick(tracer{
			onStart: func(ctx context.Context, task *outbox.TaskModel) context.Context {
				if task.Attempt == 1 {
					waiting <- text(task.ProcessID)
					<-leave
				}
				return ctx
			},
			onFinish: func(context.Context, *outbox.TaskModel, outbox.Outcome) { finished.Add(1) },
		})
		opts.Heartbeat, opts.HeartbeatLimit = 50*time.Millisecond, 10*time.Second
		p := dbtest.Install(t, db, opts, func(p *outbox.Plugin) {
			p.Handle("plain", func(ctx context.Context) error {
				if task, _ := outbox.TaskFrom(ctx); task.Attempt == 1 {
					calls.Add(1)
				}
				return nil
			})
		})
		dbtest.Start(t, p)
		task := dbtest.Create(t, db, "plain", nil, outbox.MaxAttempts(2))
		process := dbtest.Receive(t, waiting)
		if err := db.Delete(&outbox.ProcessModel{}, "id = ?", process).Error; err != nil {
			t.Fatal(err)
		}
		// It notices at its next heartbeat, and registers anew after its runs have been told.
		dbtest.Eventually(t, "it has registered anew", func() bool { return dbtest.Count(t, db, &outbox.ProcessModel{}) == 1 })
		dbtest.Eventually(t, "another process takes the task over", func() bool {
			row, past, err := outbox.Lookup(db, task.ID)
			if err != nil {
				t.Fatal(err)
			}
			return past != nil || text(row.ProcessID) != process
		})
		close(leave)
		past := dbtest.Ended(t, db, task.ID)
		dbtest.Eventually(t, "both runs are over", func() bool { return finished.Load() >= 2 })
		if n := calls.Load(); n != 0 || past.Attempt < 2 {
			t.Errorf("the lost run's handler was called %d times; attempt %d", n, past.Attempt)
		}
	})
}

// gauge counts runs that have begun and not ended, and the reasons that it was told.
type gauge struct {
	outbox.NopHooks
	mu      sync.Mutex
	running map[string]int
	least   int
	told    []outbox.Outcome
}

func (g *gauge) OnStart(ctx context.Context, task *outbox.TaskModel) context.Context {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.running[task.ID]++
	return ctx
}

func (g *gauge) OnFinish(_ context.Context, task *outbox.TaskModel, f outbox.Outcome) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.running[task.ID]--
	g.least = min(g.least, g.running[task.ID])
	g.told = append(g.told, f)
}

// Each OnStart has its OnFinish, and each OnFinish its OnStart, however a run ends.
func TestHooksComeInPairs(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		g := &gauge{running: map[string]int{}}
		p := dbtest.Install(t, db, quick(g), func(p *outbox.Plugin) {
			p.Handle("plain", func(context.Context) error { return nil })
			p.Handle("tx", func(context.Context, *gorm.DB) error { return nil })
			p.Handle("fails", func(context.Context) error { return errors.New("no") })
			p.Handle("named", func(context.Context, greeting) error { return nil })
		})
		tasks := []*outbox.TaskModel{
			dbtest.Create(t, db, "plain", nil), dbtest.Create(t, db, "tx", nil), dbtest.Create(t, db, "fails", nil, outbox.MaxAttempts(2)),
			dbtest.Create(t, db, "named", greeting{"Ann", 1}),
		}
		if err := db.Exec("UPDATE outbox_tasks SET args = '{}' WHERE func = 'named'").Error; err != nil {
			t.Fatal(err)
		}
		dbtest.Start(t, p)
		for _, task := range tasks {
			dbtest.Ended(t, db, task.ID)
		}
		dbtest.Eventually(t, "every hook was called", func() bool {
			g.mu.Lock()
			defer g.mu.Unlock()
			return len(g.told) == 5
		})
		g.mu.Lock()
		defer g.mu.Unlock()
		bad := 0
		for _, f := range g.told {
			if f.Reason == outbox.ReasonBadArgs && f.Status == outbox.StatusError && errors.Is(f.Err, outbox.ErrBadArgs) {
				bad++
			}
		}
		for id, n := range g.running {
			if n != 0 {
				t.Errorf("task %s: %d of its runs have no end", id, n)
			}
		}
		if g.least < 0 || bad != 1 || len(g.running) != 4 {
			t.Errorf("the gauge went to %d; %d ended as bad_args; %d tasks", g.least, bad, len(g.running))
		}
	})
}

// A claim that goes back before its handler was called reaches no hook.
func TestClaimThatGoesBackReachesNoHook(t *testing.T) {
	dbtest.EachInTurn(t, func(t *testing.T, db *gorm.DB) {
		g := &gauge{running: map[string]int{}}
		opts := quick(g)
		opts.ShutdownGrace, opts.CancelGrace = 100*time.Millisecond, 100*time.Millisecond
		p := dbtest.Install(t, db, opts, func(p *outbox.Plugin) {
			p.Handle("transactional", func(ctx context.Context, _ *gorm.DB, _ slowToCheck) error { return nil })
			p.Handle("ordinary", func(ctx context.Context, _ slowToCheck) error { return nil })
		})
		for _, path := range []string{"transactional", "ordinary"} {
			task := dbtest.Create(t, db, path, slowToCheck{})
			dbtest.Receive(t, checking) // by Create
			cancel, done := runAsync(t, p)
			dbtest.Receive(t, checking) // by the run
			cancel()
			if err := dbtest.Receive(t, done); err != nil {
				t.Error(err)
			}
			if waiting, _, err := outbox.Lookup(db, task.ID); err != nil || waiting == nil || waiting.Uncounted != 1 {
				t.Errorf("%+v, %v", waiting, err)
			}
			if err := outbox.Cancel(db, task.ID); err != nil {
				t.Error(err)
			}
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.least < 0 {
			t.Errorf("the gauge went to %d: %+v", g.least, g.told)
		}
	})
}

func TestSnoozeIsNoFailure(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		var log logBuffer
		g := &gauge{running: map[string]int{}}
		opts := quick(g)
		opts.Logger = log.logger()
		p := dbtest.Install(t, db, opts, func(p *outbox.Plugin) {
			later := func(ctx context.Context) error {
				if task, _ := outbox.TaskFrom(ctx); task.Uncounted < 2 {
					return outbox.Snooze(time.Millisecond)
				}
				return nil
			}
			p.Handle("plain", later)
			p.Handle("tx", func(ctx context.Context, _ *gorm.DB) error { return later(ctx) })
		})
		dbtest.Start(t, p)
		for _, path := range []string{"plain", "tx"} {
			if past := dbtest.Ended(t, db, dbtest.Create(t, db, path, nil).ID); past.Status != outbox.StatusSuccess || past.Reason != "" || len(past.Errors) != 0 {
				t.Errorf("%s: %+v", path, past)
			}
		}
		dbtest.Eventually(t, "every hook was called", func() bool {
			g.mu.Lock()
			defer g.mu.Unlock()
			return len(g.told) == 6
		})
		g.mu.Lock()
		defer g.mu.Unlock()
		snoozes := 0
		for _, f := range g.told {
			if f.Reason == outbox.ReasonSnoozed && f.Status == "" && f.Err == nil && f.Next == time.Millisecond {
				snoozes++
			}
		}
		if snoozes != 4 {
			t.Errorf("%d snoozes were told: %+v", snoozes, g.told)
		}
		if n := log.lines("level=WARN") + log.lines("level=ERROR"); n != 0 {
			t.Errorf("%d lines of trouble", n)
		}
	})
}

// newer is what a newer version of the application passes to a function.
type newer struct {
	Name  string `json:"name"`
	N     int64  `json:"n,omitempty"`
	Extra string `json:"extra,omitempty"`
}

// In a rolling deploy an old process meets arguments that only a newer one knows. It leaves them to
// it.
func TestNewArgumentsWaitForANewProcess(t *testing.T) {
	for _, d := range dbtest.Databases {
		t.Run(d.Name, func(t *testing.T) {
			t.Parallel()
			dsn := d.DSN(t)
			oldDB, err := dbtest.OpenDSN(dsn)
			newDB, again := dbtest.OpenDSN(dsn)
			if err := errors.Join(err, again); err != nil {
				t.Fatal(err)
			}
			var log logBuffer
			var ran atomic.Int32
			handler := func(_ context.Context, n newer) (string, error) { ran.Add(1); return n.Extra, nil }
			opts := quick()
			opts.Logger = log.logger()
			old := dbtest.Install(t, oldDB, opts, func(p *outbox.Plugin) {
				p.Handle("grows", func(context.Context, greeting) error { t.Error("the old handler was called"); return nil })
				p.Handle("alone", func(context.Context, greeting) error { return nil })
			})
			p := dbtest.Install(t, newDB, opts, func(p *outbox.Plugin) { p.Handle("grows", handler) })
			stop := dbtest.Start(t, old)
			row := outbox.ProcessModel{ID: "newer", Functions: outbox.JSON(`["grows"]`), StartedAt: time.Now().UTC(), BeatAt: time.Now().UTC(), Beats: 1}
			if err := newDB.Create(&row).Error; err != nil {
				t.Fatal(err)
			}
			var tasks []*outbox.TaskModel
			for range 3 {
				tasks = append(tasks, dbtest.Create(t, newDB, "grows", newer{"Ann", 1, "more"}))
			}
			dbtest.Eventually(t, "the old process gives them back", func() bool {
				for _, task := range tasks {
					row, past, err := outbox.Lookup(newDB, task.ID)
					if err != nil || past != nil {
						t.Fatalf("%+v, %v", past, err)
					}
					if len(row.Errors) == 0 || row.Errors[0].Reason != outbox.ReasonBadArgs || row.Uncounted == 0 {
						return false
					}
				}
				return true
			})
			if n := log.lines("level=WARN", "does not fit this process", "func=grows"); n != 1 {
				t.Errorf("%d lines for one function", n)
			}
			// Nobody else has this one.
			task := dbtest.Create(t, oldDB, "alone", greeting{"Ann", 1}, outbox.StartAfter(time.Hour))
			if err := oldDB.Exec(`UPDATE outbox_tasks SET args = '{"extra":1}' WHERE id = ?`, task.ID).Error; err != nil {
				t.Fatal(err)
			}
			if past := dbtest.Ended(t, oldDB, due(t, oldDB, task.ID)); past.Reason != outbox.ReasonBadArgs || past.Attempt != 1 {
				t.Errorf("%+v", past)
			}
			// The deploy goes on. Until then it is chance which of the two gets a task first.
			stop()
			dbtest.Start(t, p)
			for _, task := range tasks {
				if past := dbtest.Ended(t, newDB, task.ID); past.Status != outbox.StatusSuccess || past.Result.String() != `"more"` || past.Attempt-past.Uncounted != 1 {
					t.Errorf("%+v: %s", past, text(past.Error))
				}
			}
			if n := ran.Load(); n != 3 {
				t.Errorf("%d runs", n)
			}
		})
	}
}
