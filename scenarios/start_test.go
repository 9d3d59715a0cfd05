package scenarios_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
)

// Run's context ends before Run, at each statement with which it starts, or twice; or Run was never
// called. It returns, and leaves neither a process row nor a claimed task.
func TestStopDuringStart(t *testing.T) {
	each(t, func(t *testing.T, d database, dsn string) {
		var tp tap
		db := d.open(t, dsn, &tp)
		plain := d.open(t, dsn, nil) // looks: the other's connections may have been cut off
		dbtest.Install(t, plain, quick(), nil)
		var runs atomic.Int32
		p := dbtest.Install(t, db, quick(patient), func(p *outbox.Plugin) {
			p.Handle("ordinary", func(context.Context) error { runs.Add(1); return nil })
		})
		steps := 12
		for at := -1; at < steps; at++ {
			task := dbtest.Create(t, db, "ordinary", nil)
			ctx, cancel := context.WithCancel(t.Context())
			n := 0
			var mu sync.Mutex
			tp.set(func(_ context.Context, s step) error {
				mu.Lock()
				defer mu.Unlock()
				if n++; n == at {
					cancel()
				}
				return nil
			})
			if at < 0 {
				cancel()
			} else {
				time.AfterFunc(5*time.Second, cancel) // where there are not so many statements
			}
			for range 2 {
				if err := p.Run(ctx); err != nil {
					t.Errorf("stopped at statement %d: %v", at, err)
				}
			}
			cancel()
			tp.set(func(context.Context, step) error { return nil })
			if n := dbtest.Count(t, plain, &outbox.ProcessModel{}); n != 0 {
				t.Errorf("stopped at statement %d: %d process rows are left", at, n)
			}
			waiting, past, err := outbox.Lookup(plain, task.ID)
			if err != nil || waiting != nil && waiting.State != outbox.StatePending || waiting == nil && past.Status != outbox.StatusSuccess {
				t.Errorf("stopped at statement %d: %+v, %+v, %v", at, waiting, past, err)
			}
		}
		if n, err := p.RunDue(t.Context()); err != nil || int(runs.Load()) != steps+1 {
			t.Errorf("%d at last, %d runs of %d tasks, %v", n, runs.Load(), steps+1, err)
		}
	})
}

// Run's context ends while the process row is written: a statement that is cut short leaves unknown
// whether the row is there.
func TestStopWhileItRegisters(t *testing.T) {
	each(t, func(t *testing.T, d database, dsn string) {
		var tp tap
		db := d.open(t, dsn, &tp)
		p := dbtest.Install(t, db, quick(patient), nil)
		run, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		registered := false
		tp.set(func(ctx context.Context, s step) error {
			if !s.after && strings.Contains(s.text, `INSERT INTO "outbox_processes"`) {
				registered = true
				cancel()
				if ctx.Err() != nil {
					t.Error("the statement's context has ended with Run's")
				}
			}
			return nil
		})
		if err := p.Run(run); err != nil || !registered {
			t.Errorf("%v, registered: %v", err, registered)
		}
		if n := dbtest.Count(t, db, &outbox.ProcessModel{}); n != 0 {
			t.Errorf("%d process rows are left", n)
		}
	})
}

// When Run ends, the connection that it gets may be one that the end of a heartbeat's context has
// broken.
func TestStopOnABrokenConnection(t *testing.T) {
	each(t, func(t *testing.T, d database, dsn string) {
		var tp tap
		db := d.open(t, dsn, &tp)
		p := dbtest.Install(t, db, quick(patient), func(p *outbox.Plugin) { p.Handle("ordinary", fine) })
		stop := dbtest.Start(t, p)
		dbtest.Ended(t, db, dbtest.Create(t, db, "ordinary", nil).ID)
		var broken atomic.Bool
		tp.set(func(_ context.Context, s step) error {
			if !s.after && strings.Contains(s.text, `DELETE FROM "outbox_processes"`) && broken.CompareAndSwap(false, true) {
				return os.ErrDeadlineExceeded
			}
			return nil
		})
		stop()
		if n := dbtest.Count(t, db, &outbox.ProcessModel{}); n != 0 || !broken.Load() {
			t.Errorf("%d process rows are left, broken: %v", n, broken.Load())
		}
	})
}

// A pool that cannot serve the slots beside the dispatcher's own statements is warned of when Run
// starts, with the numbers.
func TestPoolThatIsTooSmall(t *testing.T) {
	each(t, func(t *testing.T, d database, dsn string) {
		for _, tt := range []struct {
			slots, limit int
			tx           bool
			warn         string // on a database where several can write at a time
		}{
			{10, 0, true, ""},
			{10, 13, true, ""},
			{10, 12, true, "max_open_conns=12 needed=13"},
			{10, 10, true, "max_open_conns=10 needed=13"},
			{10, 12, false, "max_open_conns=12 needed=13"},
			{10, 13, false, ""},
			{25, 28, false, ""},
			{26, 29, false, "max_open_conns=29 needed=30"}, // there are two writers of outcomes
		} {
			t.Run(fmt.Sprint(tt.slots, tt.limit, tt.tx), func(t *testing.T) {
				var log lockedBuilder
				db := d.open(t, dsn, nil)
				pool, err := db.DB()
				if err != nil {
					t.Fatal(err)
				}
				pool.SetMaxOpenConns(tt.limit)
				p := dbtest.Install(t, db, quick(patient, func(o *outbox.Options) {
					o.Concurrency, o.Logger = tt.slots, slog.New(slog.NewTextHandler(&log, nil))
				}), func(p *outbox.Plugin) {
					p.Handle("fine", fine)
					if tt.tx {
						p.Handle("fine.tx", func(context.Context, *gorm.DB) error { return nil })
					}
				})
				stop := dbtest.Start(t, p)
				dbtest.Eventually(t, "it has started", func() bool { return strings.Contains(log.String(), "started") })
				stop()
				want := tt.warn
				if d.name == "sqlite" {
					want = "" // one connection is enough there
				}
				if said := log.String(); strings.Contains(said, "MaxOpenConns") != (want != "") || !strings.Contains(said, want) {
					t.Errorf("want %q in\n%s", want, said)
				}
			})
		}
	})
}

// lockedBuilder is a log that can be read while others write.
type lockedBuilder struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedBuilder) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuilder) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// Somebody holds SQLite's write lock while Run starts, and later while a handler runs, for longer
// than any limit: Run waits, and the handler is left in peace, since nobody else can beat or take
// over either.
func TestStartUnderAForeignWriteLock(t *testing.T) {
	on(t, "sqlite", func(t *testing.T, d database, dsn string) {
		for _, busy := range []string{"100", "5000"} { // below and above the limit of one statement, 3 s
			t.Run("busy timeout "+busy, func(t *testing.T) {
				t.Parallel()
				dsn := d.dsn(t)
				db := d.open(t, strings.Replace(dsn, "_busy_timeout=5000", "_busy_timeout="+busy, 1), nil)
				started, leaving := make(chan string, 1), make(chan struct{})
				p := dbtest.Install(t, db, quick(func(o *outbox.Options) { o.HeartbeatLimit = 9 * time.Second }), func(p *outbox.Plugin) {
					p.Handle("held", func(ctx context.Context) error { started <- ""; <-leaving; return context.Cause(ctx) })
				})
				task := dbtest.Create(t, db, "held", nil)
				foreign := d.open(t, dsn, nil)
				underLock := func(what func(), until time.Duration) {
					lock := foreign.Begin()
					run(t, lock, "DELETE FROM effects")
					what()
					<-time.After(until)
					if err := lock.Rollback().Error; err != nil {
						t.Fatal(err)
					}
				}
				underLock(func() { dbtest.Start(t, p) }, 4*time.Second)
				dbtest.Receive(t, started)
				underLock(func() {}, 8*time.Second) // a lease is 6 s
				close(leaving)
				if h := dbtest.Ended(t, db, task.ID); h.Status != outbox.StatusSuccess {
					t.Errorf("%+v: %s", h, text(h))
				}
			})
		}
	})
}
