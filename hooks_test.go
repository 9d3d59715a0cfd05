package outbox_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
)

type traceKey struct{}

// tracer records its calls; each of the functions may be nil.
type tracer struct {
	onCreate func(*outbox.TaskModel)
	onStart  func(context.Context, *outbox.TaskModel) context.Context
	onFinish func(context.Context, *outbox.TaskModel, outbox.Outcome)
}

func (r tracer) OnCreate(_ context.Context, task *outbox.TaskModel) error {
	if r.onCreate != nil {
		r.onCreate(task)
	}
	return nil
}

func (r tracer) OnStart(ctx context.Context, task *outbox.TaskModel) context.Context {
	if r.onStart != nil {
		return r.onStart(ctx, task)
	}
	return ctx
}

func (r tracer) OnFinish(ctx context.Context, task *outbox.TaskModel, f outbox.Outcome) {
	if r.onFinish != nil {
		r.onFinish(ctx, task, f)
	}
}

// A handler sees the values of Run's context, and what the hooks add.
func TestContextOfOnStartReachesTheHandler(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		atFinish := make(chan any, 10)
		add := func(text string) tracer {
			return tracer{onStart: func(ctx context.Context, _ *outbox.TaskModel) context.Context {
				before, _ := ctx.Value(traceKey{}).(string)
				return context.WithValue(ctx, traceKey{}, before+text)
			}}
		}
		last := tracer{
			onStart: func(context.Context, *outbox.TaskModel) context.Context { return nil }, // leaves it as it was
			onFinish: func(ctx context.Context, _ *outbox.TaskModel, _ outbox.Outcome) {
				if ctx.Err() != nil {
					atFinish <- "a context that has ended"
				}
				atFinish <- ctx.Value(traceKey{})
			},
		}
		p := dbtest.Install(t, db, quick(add("a"), add("b"), last), func(p *outbox.Plugin) {
			p.Handle("plain", func(ctx context.Context) (any, error) { return ctx.Value(traceKey{}), nil })
			p.Handle("plain.tx", func(ctx context.Context, tx *gorm.DB) (any, error) {
				if tx.Statement.Context.Value(traceKey{}) != ctx.Value(traceKey{}) {
					return nil, errors.New("the transaction has another context")
				}
				_, ok := outbox.TaskFrom(ctx)
				return map[bool]any{true: ctx.Value(traceKey{})}[ok], nil
			})
		})
		ctx, cancel := context.WithCancel(context.WithValue(t.Context(), traceKey{}, "run+"))
		done := make(chan error, 1)
		go func() { done <- p.Run(ctx) }()
		defer func() { cancel(); <-done }()
		for _, path := range []string{"plain", "plain.tx"} {
			t.Run(path, func(t *testing.T) {
				if past := dbtest.Ended(t, db, dbtest.Create(t, db, path, nil).ID); past.Result.String() != `"run+ab"` {
					t.Errorf("the handler saw %s, error %s", past.Result, text(past.Error))
				}
				if v := dbtest.Receive(t, atFinish); v != "run+ab" {
					t.Errorf("OnFinish saw %v", v)
				}
			})
		}
	})
}

func TestPanicsOfHooksChangeNothing(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		var log logBuffer
		var told = make(chan outbox.Outcome, 10)
		bad := tracer{
			onCreate: func(*outbox.TaskModel) { panic("bad at create") },
			onStart:  func(context.Context, *outbox.TaskModel) context.Context { panic("bad at start") },
			onFinish: func(context.Context, *outbox.TaskModel, outbox.Outcome) { panic("bad at finish") },
		}
		good := tracer{onFinish: func(_ context.Context, _ *outbox.TaskModel, f outbox.Outcome) { told <- f }}
		opts := quick(bad, good)
		opts.Logger, opts.Concurrency = log.logger(), 1
		p := dbtest.Install(t, db, opts, func(p *outbox.Plugin) {
			p.Handle("plain", func(context.Context) error { return nil })
			p.Handle("plain.tx", func(context.Context, *gorm.DB) error { return nil })
			p.Handle("fails", func(context.Context) error { return errors.New("no") })
		})
		dbtest.Start(t, p)
		for path, want := range map[string]outbox.Status{"plain": outbox.StatusSuccess, "plain.tx": outbox.StatusSuccess, "fails": outbox.StatusError} {
			for range 2 {
				if past := dbtest.Ended(t, db, dbtest.Create(t, db, path, nil).ID); past.Status != want || past.Attempt != 1 {
					t.Errorf("%s: %+v", path, past)
				}
				if f := dbtest.Receive(t, told); f.Status != want {
					t.Errorf("%s: the next hook was told %+v", path, f)
				}
			}
		}
		for _, hook := range []string{"create", "start", "finish"} {
			if n := log.lines("level=ERROR", "hook panicked", "bad at "+hook); n != 6 {
				t.Errorf("%s: %d lines, want 6", hook, n)
			}
		}
	})
}

func TestOnFinishSeesHowItEnded(t *testing.T) {
	errNo := errors.New("no")
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		told := make(chan outbox.Outcome, 10)
		durable := make(chan bool, 10)
		tell := tracer{onFinish: func(_ context.Context, task *outbox.TaskModel, f outbox.Outcome) {
			_, past, err := outbox.Lookup(db, task.ID)
			durable <- err == nil && (past != nil) == (f.Status != "")
			told <- f
		}}
		opts := quick(tell)
		opts.Backoff = func(int) time.Duration { return time.Hour }
		opts.Heartbeat = time.Minute
		p := dbtest.Install(t, db, opts, func(p *outbox.Plugin) {
			p.Handle("good", func(context.Context) error { held(2 * time.Millisecond); return nil })
			p.Handle("good.tx", func(context.Context, *gorm.DB) error { held(2 * time.Millisecond); return nil })
			p.Handle("bad", func(context.Context) error { held(2 * time.Millisecond); return errNo })
			p.Handle("bad.tx", func(context.Context, *gorm.DB) error { held(2 * time.Millisecond); return errNo })
			p.Handle("snoozes", func(context.Context) error { held(2 * time.Millisecond); return outbox.Snooze(time.Minute) })
			p.Handle("loses", func(ctx context.Context) error {
				task, _ := outbox.TaskFrom(ctx)
				held(2 * time.Millisecond)
				return db.Exec("UPDATE outbox_tasks SET version = version + 1 WHERE id = ?", task.ID).Error
			})
		})
		dbtest.Start(t, p)
		for _, tt := range []struct {
			name, path string
			attempts   int
			status     outbox.Status
			reason     outbox.Reason
			err        error
			next       time.Duration
		}{
			{"success", "good", 1, outbox.StatusSuccess, outbox.ReasonNone, nil, 0},
			{"success in a transaction", "good.tx", 1, outbox.StatusSuccess, outbox.ReasonNone, nil, 0},
			{"error", "bad", 1, outbox.StatusError, outbox.ReasonFailed, errNo, 0},
			{"error in a transaction", "bad.tx", 1, outbox.StatusError, outbox.ReasonFailed, errNo, 0},
			{"retry", "bad", 2, "", outbox.ReasonFailed, errNo, time.Hour},
			{"retry of a transaction", "bad.tx", 2, "", outbox.ReasonFailed, errNo, time.Hour},
			{"claim lost", "loses", 1, "", outbox.ReasonInterrupted, outbox.ErrClaimLost, 0},
		} {
			t.Run(tt.name, func(t *testing.T) {
				dbtest.Create(t, db, tt.path, nil, outbox.MaxAttempts(tt.attempts))
				f := dbtest.Receive(t, told)
				if f.Status != tt.status || f.Reason != tt.reason || !errors.Is(f.Err, tt.err) || f.Next != tt.next || f.Duration < time.Millisecond {
					t.Errorf("told %+v, want %+v", f, tt)
				}
				if !dbtest.Receive(t, durable) {
					t.Error("told before it was durable")
				}
			})
		}
		t.Run("snooze", func(t *testing.T) {
			dbtest.Create(t, db, "snoozes", nil)
			if f := dbtest.Receive(t, told); f.Status != "" || f.Next != time.Minute {
				t.Errorf("told %+v", f)
			}
		})
		if len(told) != 0 {
			t.Errorf("told once too often: %+v", <-told)
		}
	})
}

func TestHooksAreCalledInOrder(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		var mu sync.Mutex
		var calls []string
		done := make(chan struct{}, 10)
		note := func(what string) {
			mu.Lock()
			defer mu.Unlock()
			calls = append(calls, what)
		}
		hook := func(name string) tracer {
			return tracer{
				onCreate: func(*outbox.TaskModel) { note("create " + name) },
				onStart: func(ctx context.Context, task *outbox.TaskModel) context.Context {
					note("start " + name)
					return ctx
				},
				onFinish: func(_ context.Context, task *outbox.TaskModel, _ outbox.Outcome) {
					note("finish " + name)
					done <- struct{}{}
				},
			}
		}
		p := dbtest.Install(t, db, quick(hook("1"), hook("2")), func(p *outbox.Plugin) {
			p.Handle("plain", func(context.Context) error { note("run"); return nil })
			p.Handle("plain.tx", func(context.Context, *gorm.DB) error { note("run"); return nil })
		})
		for _, path := range []string{"plain", "plain.tx"} {
			dbtest.Create(t, db, path, nil)
			if n, err := p.RunDue(t.Context()); n != 1 || err != nil {
				t.Fatalf("%d ran, %v", n, err)
			}
			dbtest.Receive(t, done)
			dbtest.Receive(t, done)
			mu.Lock()
			if want := []string{"create 1", "create 2", "start 1", "start 2", "run", "finish 1", "finish 2"}; !slices.Equal(calls, want) {
				t.Errorf("%s: %q, want %q", path, calls, want)
			}
			calls = nil
			mu.Unlock()
		}
	})
}
