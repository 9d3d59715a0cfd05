package scenarios_test

import (
	"context"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
)

func init() {
	roles["serves"] = func(s *self) error {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		opts := quick(patient, func(o *outbox.Options) {
			o.ShutdownGrace, o.CancelGrace = 300*time.Millisecond, 300*time.Millisecond
			o.Queues = []string{s.param}
		})
		begun := func(ctx context.Context) {
			task, _ := outbox.TaskFrom(ctx)
			say("started", task.ID)
		}
		return s.dispatch(ctx, opts, func(p *outbox.Plugin) {
			p.Handle("returns", func(ctx context.Context) error { begun(ctx); <-s.told; return leave(context.WithoutCancel(ctx), s.db) })
			p.Handle("obeys", func(ctx context.Context) error { begun(ctx); <-ctx.Done(); return ctx.Err() })
			p.Handle("obeys.tx", func(ctx context.Context, tx *gorm.DB) error {
				err := leave(ctx, tx)
				begun(ctx)
				<-ctx.Done()
				return err
			})
			p.Handle("ignores", func(ctx context.Context) error { begun(ctx); select {} })
			p.Handle("ignores.idempotent", func(ctx context.Context) error { begun(ctx); select {} }, outbox.Idempotent())
		})
	}
}

// SIGTERM while a handler runs: whatever the handler does, the process ends in time, and the task
// has its end there or goes back.
func TestTerminated(t *testing.T) {
	each(t, func(t *testing.T, d database, dsn string) {
		db := d.open(t, dsn, nil)
		dbtest.Install(t, db, quick(func(o *outbox.Options) { o.ProducerOnly = true }), nil)
		for _, tt := range []struct {
			kind   string
			status outbox.Status // empty: it goes back
			reason outbox.Reason
			clean  bool // the process ends without an error
			runs   int64
		}{
			{"returns", outbox.StatusSuccess, outbox.ReasonNone, true, 1},
			{"obeys", outbox.StatusError, outbox.ReasonInterrupted, true, 0},
			{"obeys.tx", "", "", true, 0},
			{"ignores", outbox.StatusError, outbox.ReasonInterrupted, false, 0},
			{"ignores.idempotent", "", "", false, 0},
		} {
			t.Run(tt.kind, func(t *testing.T) {
				task := dbtest.Create(t, db, tt.kind, nil, outbox.Queue(tt.kind))
				c := spawn(t, d, dsn, "serves", tt.kind)
				c.says(t, "started "+task.ID)
				c.signal(t, syscall.SIGTERM)
				if tt.kind == "returns" {
					c.letGo()
				}
				begun := time.Now()
				status := c.wait()
				if took := time.Since(begun); took > 20*time.Second {
					t.Errorf("it took %v to end", took) // the limit for a statement is 10 s
				}
				if status.Exited() != true || (status.ExitStatus() == 0) != tt.clean {
					t.Errorf("it ended with %v", c.ProcessState)
				}
				waiting, past, err := outbox.Lookup(db, task.ID)
				switch {
				case err != nil:
					t.Fatal(err)
				case tt.status == "" && (waiting == nil || waiting.State != outbox.StatePending || waiting.Uncounted != 1):
					t.Errorf("it should wait to be run again: %+v, %+v", waiting, past)
				case tt.status != "" && (past == nil || past.Status != tt.status || past.Reason != tt.reason):
					t.Errorf("waiting %+v, past %+v; want %s, %s", waiting, past, tt.status, tt.reason)
				}
				if n := effects(t, db, task.ID); n != tt.runs {
					t.Errorf("%d effects, want %d", n, tt.runs)
				}
				if n := dbtest.Count(t, db, &outbox.ProcessModel{}); n != 0 {
					t.Errorf("%d process rows are left", n)
				}
			})
		}
	})
}

// A drain that takes longer than the heartbeat limit is no death: the process goes on beating.
func TestDrainLongerThanTheHeartbeatLimit(t *testing.T) {
	each(t, func(t *testing.T, d database, dsn string) {
		db := d.open(t, dsn, nil)
		started, leaving := make(chan struct{}, 10), make(chan struct{})
		wait := func(p *outbox.Plugin) {
			p.Handle("ordinary", func(ctx context.Context) error {
				started <- struct{}{}
				<-leaving
				return leave(context.WithoutCancel(ctx), db)
			}, outbox.Idempotent())
		}
		opts := quick(func(o *outbox.Options) {
			o.ShutdownGrace, o.Heartbeat, o.HeartbeatLimit = time.Minute, 100*time.Millisecond, 2*time.Second
		})
		first := dbtest.Install(t, db, opts, wait)
		stop := dbtest.Start(t, first)
		task := dbtest.Create(t, db, "ordinary", nil)
		dbtest.Receive(t, started)
		second := dbtest.Install(t, d.open(t, dsn, nil), opts, wait)
		dbtest.Start(t, second)
		dbtest.Eventually(t, "both are there", func() bool { return dbtest.Count(t, db, &outbox.ProcessModel{}) == 2 })
		drained := make(chan struct{})
		go func() { stop(); close(drained) }()
		<-time.After(opts.HeartbeatLimit + time.Second) // which is what the test is about
		close(leaving)
		dbtest.Receive(t, drained)
		h := dbtest.Ended(t, db, task.ID)
		if n := effects(t, db, task.ID); n != 1 || h.Status != outbox.StatusSuccess || h.Attempt != 1 || h.Crashes != 0 {
			t.Errorf("%d effects, %+v", n, h)
		}
	})
}
