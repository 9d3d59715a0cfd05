package outbox_test

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
	"github.com/gorm-outbox/outbox/internal/dialect"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

// misbehave is what the application's code does to us: the two ways not to return.
var misbehave = map[string]func(){
	"panics": func() { panic("the application's code") },
	"exits":  runtime.Goexit,
}

// evilArgs and evilResult have methods that misbehave while evil is set.
type evilArgs struct{ Name string }

var evil, evilCheck atomic.Pointer[func()]

func call(f *atomic.Pointer[func()]) {
	if do := f.Load(); do != nil {
		(*do)()
	}
}

func (evilArgs) Validate() error { call(&evilCheck); return nil }

type evilJSON struct{}

func (evilJSON) MarshalJSON() ([]byte, error) { call(&evil); return []byte(`"good"`), nil }

func (*evilJSON) UnmarshalJSON([]byte) error { call(&evil); return nil }

type evilField struct{ Field evilJSON }

// lateError is an error whose methods misbehave from their second use on, when it was found to be
// harmless.
type lateError struct {
	uses *atomic.Int32
	do   func()
}

func (e lateError) use() {
	if e.uses.Add(1) > 1 {
		e.do()
	}
}
func (e lateError) Error() string        { return "late" }
func (e lateError) Is(error) bool        { e.use(); return false }
func (e lateError) As(any) bool          { e.use(); return false }
func (e lateError) Unwrap() error        { e.use(); return nil }
func (e lateError) LogValue() slog.Value { e.use(); return slog.StringValue("late") }

// evilLog is a slog.Handler that misbehaves in each record.
type evilLog struct{ do func() }

func (evilLog) Enabled(context.Context, slog.Level) bool    { return true }
func (h evilLog) Handle(context.Context, slog.Record) error { h.do(); return nil }
func (h evilLog) WithAttrs([]slog.Attr) slog.Handler        { h.do(); return h }
func (h evilLog) WithGroup(string) slog.Handler             { h.do(); return h }

// evilWaker misbehaves as soon as it is to listen.
type evilWaker struct{ do func() }

func (evilWaker) Created(context.Context, gorm.ConnPool, *sql.DB) error { return nil }
func (w evilWaker) Listen(context.Context, *sql.DB, func()) error       { w.do(); return nil }

// evilCreated misbehaves when a task was created.
type evilCreated struct{ do func() }

func (w evilCreated) Created(context.Context, gorm.ConnPool, *sql.DB) error { w.do(); return nil }
func (evilCreated) Listen(ctx context.Context, _ *sql.DB, _ func()) error   { <-ctx.Done(); return nil }

// evilContext is a context whose methods misbehave.
type evilContext struct {
	context.Context
	do func()
}

func (c evilContext) Done() <-chan struct{} { c.do(); return nil }
func (c evilContext) Err() error            { c.do(); return nil }

// evilTx is a transaction of a foreign pool that misbehaves when it is asked whether it is over.
type evilTx struct {
	*sql.Tx
	do func()
}

func (t *evilTx) StmtContext(context.Context, *sql.Stmt) *sql.Stmt { t.do(); return nil }

// evilTrace is a GORM logger that misbehaves.
type evilTrace struct {
	logger.Interface
	do func()
}

func (t evilTrace) LogMode(logger.LogLevel) logger.Interface                        { return t }
func (t evilTrace) Trace(context.Context, time.Time, func() (string, int64), error) { t.do() }

// Whatever the application's code does, its task ends and others run: the process, its dispatcher
// and every goroutine that they need live on.
func TestForeignCodeEndsNothing(t *testing.T) {
	for how, do := range misbehave {
		t.Run(how, func(t *testing.T) {
			for _, tt := range []struct {
				name   string
				opts   func(*outbox.Options)
				create func(t *testing.T, db *gorm.DB) string // of a task that meets the code
				reason outbox.Reason                          // with which it ends; empty is success
				every  bool                                   // on every database: it is met in a transaction
			}{
				{name: "backoff", every: true, reason: outbox.ReasonFailed, opts: func(o *outbox.Options) {
					o.Backoff = func(int) time.Duration { do(); return 0 }
				}, create: func(t *testing.T, db *gorm.DB) string {
					return dbtest.Create(t, db, "fails", nil, outbox.MaxAttempts(2)).ID
				}},
				{name: "OnStart", opts: func(o *outbox.Options) {
					o.Hooks = []outbox.Hooks{tracer{onStart: func(ctx context.Context, _ *outbox.TaskModel) context.Context { do(); return ctx }}}
				}},
				{name: "OnFinish", opts: func(o *outbox.Options) {
					o.Hooks = []outbox.Hooks{tracer{onFinish: func(context.Context, *outbox.TaskModel, outbox.Outcome) { do() }}}
				}},
				{name: "context of OnStart", opts: func(o *outbox.Options) {
					o.Hooks = []outbox.Hooks{tracer{onStart: func(ctx context.Context, _ *outbox.TaskModel) context.Context {
						return evilContext{ctx, do}
					}}}
				}},
				{name: "Waker", opts: func(o *outbox.Options) { o.Wakers = []outbox.Waker{evilWaker{do}} }},
				{name: "Waker at Create", opts: func(o *outbox.Options) {
					if how == "panics" { // Create is called on the caller's own goroutine, which may end itself
						o.Wakers = []outbox.Waker{evilCreated{do}}
					}
				}},
				{name: "logger", opts: func(o *outbox.Options) { o.Logger = slog.New(evilLog{do}) }, reason: outbox.ReasonFailed,
					create: func(t *testing.T, db *gorm.DB) string { return dbtest.Create(t, db, "fails", nil).ID }},
				{name: "Validate", reason: outbox.ReasonBadArgs, create: func(t *testing.T, db *gorm.DB) string {
					id := dbtest.Create(t, db, "checked", evilArgs{"a"}, outbox.StartAfter(time.Hour)).ID
					evilCheck.Store(&do)
					t.Cleanup(func() { evilCheck.Store(nil) })
					return due(t, db, id)
				}},
				{name: "UnmarshalJSON", reason: outbox.ReasonBadArgs, create: func(t *testing.T, db *gorm.DB) string {
					id := dbtest.Create(t, db, "decoded", evilField{}, outbox.StartAfter(time.Hour)).ID
					evil.Store(&do)
					t.Cleanup(func() { evil.Store(nil) })
					return due(t, db, id)
				}},
				{name: "MarshalJSON", reason: outbox.ReasonBadResult, create: func(t *testing.T, db *gorm.DB) string {
					evil.Store(&do)
					t.Cleanup(func() { evil.Store(nil) })
					return dbtest.Create(t, db, "result", nil).ID
				}},
				{name: "error", reason: "any", create: func(t *testing.T, db *gorm.DB) string { return dbtest.Create(t, db, "late", nil).ID }},
				{name: "error in a transaction", every: true, reason: "any", create: func(t *testing.T, db *gorm.DB) string {
					return dbtest.Create(t, db, "late.tx", nil).ID
				}},
				{name: "ConnPool", every: true, create: func(t *testing.T, db *gorm.DB) string {
					tx := db.Begin()
					foreign := tx.Session(&gorm.Session{Context: t.Context()})
					foreign.Statement.ConnPool = &evilTx{tx.Statement.ConnPool.(*sql.Tx), do}
					id := dbtest.Create(t, foreign, "plain", nil).ID
					if err := tx.Commit().Error; err != nil {
						t.Fatal(err)
					}
					return id
				}},
				{name: "logger of GORM", create: func(t *testing.T, db *gorm.DB) string {
					if how == "exits" {
						return dbtest.Create(t, db, "plain", nil).ID // it is the caller's own goroutine
					}
					return dbtest.Create(t, db.Session(&gorm.Session{Logger: evilTrace{db.Logger, do}}), "plain", nil).ID
				}},
			} {
				t.Run(tt.name, func(t *testing.T) {
					on := func(t *testing.T, test func(t *testing.T, db *gorm.DB)) { test(t, testdb.SQLite(t)) }
					if tt.every {
						on = dbtest.EachInTurn
					}
					on(t, func(t *testing.T, db *gorm.DB) {
						opts := quick()
						if tt.opts != nil {
							tt.opts(&opts)
						}
						p := dbtest.Install(t, db, opts, func(p *outbox.Plugin) {
							p.Handle("plain", func(context.Context) error { return nil })
							p.Handle("plain.tx", func(context.Context, *gorm.DB) error { return nil })
							p.Handle("fails", func(context.Context) error { return errors.New("no") })
							p.Handle("checked", func(context.Context, evilArgs) error { return nil })
							p.Handle("decoded", func(context.Context, evilField) error { return nil })
							p.Handle("result", func(context.Context) (evilJSON, error) { return evilJSON{}, nil })
							p.Handle("late", func(context.Context) error { return lateError{new(atomic.Int32), do} })
							p.Handle("late.tx", func(context.Context, *gorm.DB) error { return lateError{new(atomic.Int32), do} })
						})
						dbtest.Start(t, p)
						if tt.create == nil {
							tt.create = func(t *testing.T, db *gorm.DB) string { return dbtest.Create(t, db, "plain", nil).ID }
						}
						past := dbtest.Ended(t, db, tt.create(t, db))
						if tt.reason != "any" && past.Reason != tt.reason {
							t.Errorf("it ended as %s %s: %s", past.Status, past.Reason, text(past.Error))
						}
						for _, path := range []string{"plain", "plain.tx"} {
							for range 3 {
								if past := dbtest.Ended(t, db, dbtest.Create(t, db, path, nil).ID); past.Status != outbox.StatusSuccess {
									t.Errorf("another task ended as %s %s: %s", past.Status, past.Reason, text(past.Error))
								}
							}
						}
					})
				})
			}
		})
	}
}

// due makes a task due that was created for later.
func due(t *testing.T, db *gorm.DB, id string) string {
	t.Helper()
	if err := outbox.Reschedule(db, id, time.Now()); err != nil {
		t.Fatal(err)
	}
	return id
}

func TestBackoffThatFailsIsLoggedOnce(t *testing.T) {
	for name, backoff := range map[string]func(int) time.Duration{
		"panics": func(int) time.Duration { return []time.Duration{}[0] },
		"hangs":  func(int) time.Duration { select {} },
	} {
		t.Run(name, func(t *testing.T) {
			dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
				var log logBuffer
				p := dbtest.Install(t, db, outbox.Options{Scan: "@every 20ms", Backoff: backoff, Logger: log.logger()}, func(p *outbox.Plugin) {
					p.Handle("fails", func(context.Context) error { return errors.New("no") })
				})
				dbtest.Start(t, p)
				task := dbtest.Create(t, db, "fails", nil, outbox.MaxAttempts(3))
				if past := dbtest.Ended(t, db, task.ID); past.Attempt != 3 || past.FinishedAt.Sub(past.CreatedAt) < 2*time.Second {
					t.Errorf("attempt %d, after %v: the default has pauses of a second and two", past.Attempt, past.FinishedAt.Sub(past.CreatedAt))
				}
				if n := log.lines("level=ERROR", "Options.Backoff failed"); n != 1 {
					t.Errorf("%d lines say so, want 1", n)
				}
			})
		})
	}
}

// A clock of a test's that fails gives way to the process's.
func TestClockThatFails(t *testing.T) {
	for how, do := range misbehave {
		t.Run(how, func(t *testing.T) {
			dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
				opts := quick()
				opts.Clock = func() time.Time { do(); return time.Time{} }
				p := dbtest.Install(t, db, opts, func(p *outbox.Plugin) { p.Handle("plain", func(context.Context) error { return nil }) })
				task := dbtest.Create(t, db, "plain", nil)
				if n, err := p.RunDue(t.Context()); n != 1 || err != nil {
					t.Fatalf("%d ran, %v", n, err)
				}
				dbtest.Ended(t, db, task.ID)
			})
		})
	}
}

// panicky is a database whose driver panics in a statement each time that it is armed.
type panicky struct {
	dialect.Dialect
	at  string
	hit *atomic.Int32
}

func (d panicky) reach(at string) {
	if d.at == at && d.hit.Add(1) <= 2 {
		panic("the driver, at " + at)
	}
}

func (d panicky) Poll(ctx context.Context, c dialect.Conn) ([]dialect.PartitionState, error) {
	d.reach("probe")
	return d.Dialect.Poll(ctx, c)
}

func (d panicky) Claim(ctx context.Context, c dialect.Conn, p dialect.ClaimParams, each func(dialect.Row) error) error {
	d.reach("claim")
	return d.Dialect.Claim(ctx, c, p, each)
}

func (d panicky) Move(ctx context.Context, c dialect.Conn, from dialect.From, rows []dialect.Outcome) ([]string, error) {
	d.reach("move")
	return d.Dialect.Move(ctx, c, from, rows)
}

func (d panicky) Requeue(ctx context.Context, c dialect.Conn, rows []dialect.Requeued) ([]string, error) {
	d.reach("requeue")
	return d.Dialect.Requeue(ctx, c, rows)
}

func (d panicky) Park(ctx context.Context, c dialect.Conn, partitions []dialect.Partition, limit int) ([]string, error) {
	d.reach("park")
	return d.Dialect.Park(ctx, c, partitions, limit)
}

func (d panicky) Unpark(ctx context.Context, c dialect.Conn, funcs, queues []string, limit int) (int64, error) {
	d.reach("unpark")
	return d.Dialect.Unpark(ctx, c, funcs, queues, limit)
}

func (d panicky) Rebind(query string) string {
	if strings.Contains(query, "beats = beats + 1") {
		d.reach("beat")
	}
	return d.Dialect.Rebind(query)
}

func TestDriverThatPanicsEndsNothing(t *testing.T) {
	for _, at := range []string{"probe", "claim", "move", "requeue", "park", "unpark", "beat"} {
		t.Run(at, func(t *testing.T) {
			dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
				opts := quick()
				opts.Heartbeat = 50 * time.Millisecond
				opts.HeartbeatLimit = 10 * time.Second
				p := dbtest.Install(t, db, opts, func(p *outbox.Plugin) {
					p.Handle("plain", func(context.Context) error { return nil })
					p.Handle("fails", func(context.Context) error { return errors.New("no") })
				})
				hit := new(atomic.Int32)
				p.Intercept(func(d dialect.Dialect) dialect.Dialect { return panicky{d, at, hit} })
				parked := outbox.TaskModel{ID: "parked", Func: "nobodys", Args: outbox.JSON("{}"), Queue: "default", Priority: 2, RunAt: time.Now().UTC(),
					State: outbox.StateParked, MaxAttempts: 1, Version: 1, CreatedAt: time.Now().UTC()}
				waiting := parked
				waiting.ID, waiting.State = "waiting", outbox.StatePending
				if err := db.Create([]outbox.TaskModel{parked, waiting}).Error; err != nil {
					t.Fatal(err)
				}
				dbtest.Start(t, p)
				dbtest.Create(t, db, "fails", nil, outbox.MaxAttempts(3))
				dbtest.Eventually(t, "the driver panics twice", func() bool { return hit.Load() > 1 })
				if past := dbtest.Ended(t, db, dbtest.Create(t, db, "plain", nil).ID); past.Status != outbox.StatusSuccess {
					t.Errorf("%+v", past)
				}
			})
		})
	}
}

// panicsAtCommit panics instead of the next COMMIT or ROLLBACK once it is armed.
type panicsAtCommit struct {
	dialect.Dialect
	armed *atomic.Bool
	hit   *atomic.Int32
}

func (d panicsAtCommit) End(ctx context.Context, end func() error) error {
	if d.armed.CompareAndSwap(true, false) {
		d.hit.Add(1)
		panic("the driver's COMMIT")
	}
	return d.Dialect.End(ctx, end)
}

// A transactional run has ended when its COMMIT is sent, so that nothing else gives its outcome.
func TestDriverThatPanicsInACommitKeepsNoSlot(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		armed, hit := new(atomic.Bool), new(atomic.Int32)
		opts := quick()
		opts.Concurrency = 1
		p := dbtest.Install(t, db, opts, func(p *outbox.Plugin) {
			p.Handle("tx", func(context.Context, *gorm.DB) error {
				armed.Store(hit.Load() < 2)
				return nil
			})
		})
		p.Intercept(func(d dialect.Dialect) dialect.Dialect { return panicsAtCommit{d, armed, hit} })
		dbtest.Start(t, p)
		first := dbtest.Create(t, db, "tx", nil, outbox.MaxAttempts(5))
		second := dbtest.Create(t, db, "tx", nil, outbox.MaxAttempts(5))
		for _, id := range []string{first.ID, second.ID} {
			if past := dbtest.Ended(t, db, id); past.Status != outbox.StatusSuccess {
				t.Errorf("%s: %s, %v", past.Status, past.Reason, past.Errors)
			}
		}
		if hit.Load() == 0 {
			t.Error("it never panicked")
		}
	})
}
