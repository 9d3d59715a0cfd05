package testutil_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
	"github.com/gorm-outbox/outbox/testutil"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

// install makes a plugin with a clock and its handlers.
func install(t *testing.T, db *gorm.DB, clock *testutil.Clock, handlers map[string]any) *outbox.Plugin {
	t.Helper()
	opts := outbox.Options{Logger: slog.New(slog.DiscardHandler)}
	if clock != nil {
		opts.Clock = clock.Now
	}
	p := outbox.New(opts)
	for path, fn := range handlers {
		p.Handle(path, fn)
	}
	if err := db.Use(p); err != nil {
		t.Fatal(err)
	}
	if err := p.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return p
}

func ok(context.Context, outbox.Args) error { return nil }

type chainArgs struct {
	Left int `json:"left"`
}

// chain creates its own successor.
func chain(_ context.Context, tx *gorm.DB, a chainArgs) error {
	if a.Left == 0 {
		return nil
	}
	_, err := outbox.Create(tx, "chain", chainArgs{a.Left - 1})
	return err
}

func TestRequireCreated(t *testing.T) {
	dbtest.EachInTurn(t, func(t *testing.T, db *gorm.DB) {
		p := install(t, db, nil, map[string]any{"mail.send": ok, "order.check": ok, "order.ship": ok})
		const big = uint64(9007199254740993)
		first := dbtest.Create(t, db, "mail.send", outbox.Args{
			"to": "ann@example.com", "n": big, "none": nil,
			"item": outbox.Args{"sku": "a<b", "sizes": []int{1, 2}},
		}, outbox.StartAfter(time.Hour))
		dbtest.Create(t, db, "order.check", nil, outbox.StartAfter(time.Hour))
		dbtest.Create(t, db, "order.check", nil, outbox.StartAfter(time.Hour))

		for name, args := range map[string]outbox.Args{
			"nil":                 nil,
			"no key":              {},
			"one key":             {"to": "ann@example.com"},
			"a big integer":       {"n": big},
			"a number as decimal": {"n": json.Number("9007199254740993.0")},
			"null":                {"none": nil},
			"an inner object": {"item": struct {
				Sizes []int64 `json:"sizes"`
				SKU   string  `json:"sku"`
			}{[]int64{1, 2}, "a<b"}},
		} {
			t.Run(name+" matches", func(t *testing.T) {
				if got := testutil.RequireCreated(t, db, "mail.send", args); got.ID != first.ID {
					t.Errorf("task %s, want %s", got.ID, first.ID)
				}
				msg := fails(t, func(t testing.TB) { testutil.RequireNotCreated(t, db, "mail.send", args) })
				contains(t, msg, "mail.send", first.ID, "pending, due 20", `"to":"ann@example.com"`)
			})
		}

		for name, tt := range map[string]struct {
			args outbox.Args
			says string
		}{
			"another value":               {outbox.Args{"to": "bob"}, `to is "ann@example.com", not "bob"`},
			"a missing key":               {outbox.Args{"cc": "bob"}, "cc is missing"},
			"null for a missing key":      {outbox.Args{"cc": nil}, "cc is missing"},
			"a neighbouring big integer":  {outbox.Args{"n": big - 1}, "n is 9007199254740993, not 9007199254740992"},
			"a number as text":            {outbox.Args{"n": "9007199254740993"}, `not "9007199254740993"`},
			"null for a value":            {outbox.Args{"to": nil}, "not null"},
			"a part of an inner object":   {outbox.Args{"item": outbox.Args{"sku": "a<b"}}, `not {"sku":"a<b"}`},
			"a part of an array":          {outbox.Args{"item": outbox.Args{"sku": "a<b", "sizes": []int{1}}}, `"sizes":[1]`},
			"one of two keys":             {outbox.Args{"to": "ann@example.com", "none": 1}, ": none is null, not 1"},
			"an object for a plain value": {outbox.Args{"to": outbox.Args{}}, "not {}"},
		} {
			t.Run(name+" does not match", func(t *testing.T) {
				testutil.RequireNotCreated(t, db, "mail.send", tt.args)
				msg := fails(t, func(t testing.TB) { testutil.RequireCreated(t, db, "mail.send", tt.args) })
				contains(t, msg, tt.says, first.ID, "pending", "order.check (2)")
			})
		}

		t.Run("another path is shown", func(t *testing.T) {
			testutil.RequireNotCreated(t, db, "order.ship", nil)
			msg := fails(t, func(t testing.TB) { testutil.RequireCreated(t, db, "order.ship", nil) })
			contains(t, msg, "order.ship", "of this path: none", "mail.send (1), order.check (2)")
		})

		t.Run("an ended task is not unfinished, and is told of", func(t *testing.T) {
			dbtest.Create(t, db, "order.ship", nil)
			testutil.Drain(t, p)
			testutil.RequireNotCreated(t, db, "order.ship", nil)
			msg := fails(t, func(t testing.TB) { testutil.RequireCreated(t, db, "order.ship", nil) })
			contains(t, msg, "ended tasks of this path: success (1)")
		})

		t.Run("the last of several", func(t *testing.T) {
			dbtest.Create(t, db, "order.ship", outbox.Args{"id": 1}, outbox.StartAfter(2*time.Hour))
			last := dbtest.Create(t, db, "order.ship", outbox.Args{"id": 1}, outbox.StartAfter(time.Hour))
			dbtest.Create(t, db, "order.ship", outbox.Args{"id": 2}, outbox.StartAfter(time.Hour))
			if got := testutil.RequireCreated(t, db, "order.ship", outbox.Args{"id": 1}); got.ID != last.ID {
				t.Errorf("task %s, want %s", got.ID, last.ID)
			}
		})
	})
}

func TestRequireCreatedInTransaction(t *testing.T) {
	dbtest.EachInTurn(t, func(t *testing.T, db *gorm.DB) {
		install(t, db, nil, map[string]any{"mail.send": ok})
		back := errors.New("roll back")
		err := db.Transaction(func(tx *gorm.DB) error {
			dbtest.Create(t, tx, "mail.send", outbox.Args{"to": "ann"})
			testutil.RequireCreated(t, tx, "mail.send", outbox.Args{"to": "ann"})
			// What else a handle carries makes no difference.
			testutil.RequireCreated(t, tx.Table("elsewhere").Where("1 = 0"), "mail.send", outbox.Args{"to": "ann"})
			return back
		})
		if !errors.Is(err, back) {
			t.Fatal(err)
		}
		testutil.RequireNotCreated(t, db, "mail.send", nil)

		t.Run("a handle that cannot look fails", func(t *testing.T) {
			dry := db.Session(&gorm.Session{DryRun: true})
			contains(t, fails(t, func(t testing.TB) { testutil.RequireNotCreated(t, dry, "mail.send", nil) }), "DryRun")
			bad := db.Session(&gorm.Session{})
			bad.Error = errors.New("broken before")
			contains(t, fails(t, func(t testing.TB) { testutil.RequireNotCreated(t, bad, "mail.send", nil) }), "broken before")
		})
		t.Run("arguments that are not JSON fail", func(t *testing.T) {
			contains(t, fails(t, func(t testing.TB) {
				testutil.RequireNotCreated(t, db, "mail.send", outbox.Args{"to": func() {}})
			}), "not JSON")
		})
	})
}

func TestDrain(t *testing.T) {
	dbtest.EachInTurn(t, func(t *testing.T, db *gorm.DB) {
		clock := testutil.NewClock(time.Now())
		p := install(t, db, clock, map[string]any{
			"ok":    ok,
			"fail":  func(context.Context, outbox.Args) error { return errors.New("no such\nfile") },
			"chain": chain,
		})

		t.Run("nothing", func(t *testing.T) {
			if n := testutil.Drain(t, p); n != 0 {
				t.Errorf("%d ran, want 0", n)
			}
		})

		t.Run("each error fails the test, once", func(t *testing.T) {
			old := dbtest.Create(t, db, "fail", outbox.Args{"orderId": 1})
			contains(t, fails(t, func(t testing.TB) { testutil.Drain(t, p) }), old.ID)

			one := dbtest.Create(t, db, "fail", outbox.Args{"orderId": 2})
			two := dbtest.Create(t, db, "fail", outbox.Args{"orderId": 3})
			dbtest.Create(t, db, "ok", nil)
			n := 0
			msg := fails(t, func(t testing.TB) { n = testutil.Drain(t, p) })
			contains(t, msg, one.ID, two.ID, `{"orderId":2}`, `{"orderId":3}`, "fail ended as error (failed)", "\tno such\n\tfile")
			if n != 3 {
				t.Errorf("%d ran, want 3", n)
			}
			if strings.Contains(msg, old.ID) {
				t.Errorf("tells of a task that had ended before:\n%s", msg)
			}
			testutil.Drain(t, p)
		})

		t.Run("arguments that do not fit fail the test, though nothing ran", func(t *testing.T) {
			task := dbtest.Create(t, db, "chain", outbox.Args{"left": 0})
			if err := db.Model(task).Update("args", outbox.JSON(`{"right":1}`)).Error; err != nil {
				t.Fatal(err)
			}
			contains(t, fails(t, func(t testing.TB) { testutil.Drain(t, p) }), task.ID, "bad_args", "right")
		})

		t.Run("a retry waits for the clock", func(t *testing.T) {
			dbtest.Create(t, db, "fail", nil, outbox.MaxAttempts(2))
			if n := testutil.Drain(t, p); n != 1 {
				t.Errorf("%d ran, want 1", n)
			}
			clock.Advance(time.Minute)
			fails(t, func(t testing.TB) { testutil.Drain(t, p) })
		})

		t.Run("parked tasks are named", func(t *testing.T) {
			task := dbtest.Create(t, db, "ok", nil)
			if err := db.Model(task).Update("func", "gone").Error; err != nil {
				t.Fatal(err)
			}
			r := record(t, func(t testing.TB) { testutil.Drain(t, p) })
			if r.failed() {
				t.Errorf("failed: %s", r.errors)
			}
			contains(t, r.logs, "parked", "gone", task.ID)
		})
	})
}

func TestDrainRunsWhatTasksCreate(t *testing.T) {
	for name, clock := range map[string]*testutil.Clock{"by a test's clock": testutil.NewClock(time.Now()), "by the database's": nil} {
		t.Run(name, func(t *testing.T) {
			dbtest.EachInTurn(t, func(t *testing.T, db *gorm.DB) {
				p := install(t, db, clock, map[string]any{"chain": chain})
				dbtest.Create(t, db, "chain", outbox.Args{"left": 4})
				if n := testutil.Drain(t, p); n != 5 {
					t.Errorf("%d ran, want 5", n)
				}
			})
		})
	}
}

func TestDrainGivesUp(t *testing.T) {
	t.Run("without db.Use", func(t *testing.T) {
		contains(t, fails(t, func(t testing.TB) { testutil.Drain(t, outbox.New(outbox.Options{})) }), "not installed")
	})

	t.Run("without tables", func(t *testing.T) {
		p := outbox.New(outbox.Options{})
		if err := testdb.SQLite(t).Use(p); err != nil {
			t.Fatal(err)
		}
		contains(t, fails(t, func(t testing.TB) { testutil.Drain(t, p) }), "drain")
	})

	t.Run("on a chain without end", func(t *testing.T) {
		// The test's context ends instead of the limit, so that the test of it is short.
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		db, runs := testdb.SQLite(t), 0
		p := install(t, db, testutil.NewClock(time.Now()), map[string]any{
			"again": func(_ context.Context, tx *gorm.DB) error {
				if runs++; runs == 20 {
					cancel()
				}
				_, err := outbox.Create(tx, "again", nil)
				return err
			},
		})
		dbtest.Create(t, db, "again", nil)
		r := &recorder{TB: t, ctx: ctx}
		r.run(func(t testing.TB) { testutil.Drain(t, p) })
		contains(t, r.errors, "not done after", "at once", "unfinished: again (1)")
	})
}

// Without a free connection the first thing that Drain reads waits for ever.
func TestDrainEndsWithItsContext(t *testing.T) {
	dbtest.EachInTurn(t, func(t *testing.T, db *gorm.DB) {
		p := install(t, db, testutil.NewClock(time.Now()), map[string]any{"ok": ok})
		pool, err := db.DB()
		if err != nil {
			t.Fatal(err)
		}
		pool.SetMaxOpenConns(1)
		held, err := pool.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer held.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		r, drained := &recorder{TB: t, ctx: ctx}, make(chan struct{})
		go func() {
			defer close(drained)
			r.run(func(t testing.TB) { testutil.Drain(t, p) })
		}()
		select {
		case <-drained:
			contains(t, r.errors, "read history", "context deadline exceeded")
		case <-time.After(30 * time.Second):
			t.Error("it stays")
		}
	})
}

// The pool is taken while Drain runs: what it reads for its messages ends soon too.
func TestDrainThatLosesItsConnections(t *testing.T) {
	db := testdb.SQLite(t)
	pool, err := db.DB()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	p := outbox.New(outbox.Options{
		Heartbeat: time.Second, HeartbeatLimit: 3 * time.Second, ShutdownGrace: time.Millisecond, CancelGrace: time.Millisecond,
		Logger: slog.New(slog.DiscardHandler),
	})
	p.Handle("holds", func(context.Context) error {
		pool.SetMaxOpenConns(1)
		_, err := pool.Conn(t.Context()) // until the test ends
		cancel()
		return err
	})
	if err := errors.Join(db.Use(p), p.Migrate(t.Context())); err != nil {
		t.Fatal(err)
	}
	dbtest.Create(t, db, "holds", nil)
	r, drained := &recorder{TB: t, ctx: ctx}, make(chan struct{})
	go func() {
		defer close(drained)
		r.run(func(t testing.TB) { testutil.Drain(t, p) })
	}()
	select {
	case <-drained:
		contains(t, r.errors, "not done after", "read history", "read tasks")
	case <-time.After(30 * time.Second):
		t.Error("it stays")
	}
}

// recorder is a test whose failures are looked at.
type recorder struct {
	testing.TB
	ctx    context.Context
	errors string
	logs   string
}

func (r *recorder) Helper()                         {}
func (r *recorder) Context() context.Context        { return r.ctx }
func (r *recorder) Logf(format string, args ...any) { r.logs += fmt.Sprintf(format, args...) + "\n" }
func (r *recorder) Errorf(format string, args ...any) {
	r.errors += fmt.Sprintf(format, args...) + "\n"
}
func (r *recorder) Fatalf(format string, args ...any) {
	r.Errorf(format, args...)
	runtime.Goexit()
}

func (r *recorder) failed() bool { return r.errors != "" }

// run calls f in a goroutine of its own, as Fatalf ends it.
func (r *recorder) run(f func(testing.TB)) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(r)
	}()
	<-done
}

func record(t *testing.T, f func(testing.TB)) *recorder {
	t.Helper()
	r := &recorder{TB: t, ctx: t.Context()}
	r.run(f)
	return r
}

// fails is the message with which f fails its test.
func fails(t *testing.T, f func(testing.TB)) string {
	t.Helper()
	r := record(t, f)
	if !r.failed() {
		t.Fatal("it did not fail the test")
	}
	return r.errors
}

func contains(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("does not tell %q:\n%s", part, text)
		}
	}
}

// A test that is wrapped in a transaction has nothing that could run, and must not be told that
// nothing was due.
func TestDrainInATransaction(t *testing.T) {
	dbtest.EachInTurn(t, func(t *testing.T, db *gorm.DB) {
		p := install(t, db, nil, map[string]any{"mail.send": ok})
		tx := db.Begin()
		defer tx.Rollback()
		dbtest.Create(t, tx, "mail.send", nil)
		contains(t, fails(t, func(t testing.TB) { testutil.Drain(t, p) }), "a transaction that created tasks is still open")
		testutil.RequireCreated(t, tx, "mail.send", nil)
		if err := tx.Rollback().Error; err != nil {
			t.Fatal(err)
		}
		if n := testutil.Drain(t, p); n != 0 {
			t.Errorf("%d ran after the rollback", n)
		}
		if err := db.Transaction(func(tx *gorm.DB) error {
			dbtest.Create(t, tx, "mail.send", nil)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if n := testutil.Drain(t, p); n != 1 {
			t.Errorf("%d ran after the commit", n)
		}
	})
}

// An application's callbacks decide what it reads, not what a test is told.
func TestCallbacksHideNothing(t *testing.T) {
	dbtest.EachInTurn(t, func(t *testing.T, db *gorm.DB) {
		p := install(t, db, nil, map[string]any{"mail.send": func(context.Context) error { return errors.New("no route") }})
		for _, err := range []error{
			db.Callback().Query().Replace("gorm:query", func(*gorm.DB) {}),
			db.Callback().Row().Replace("gorm:row", func(*gorm.DB) {}),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
		dbtest.Create(t, db, "mail.send", nil)
		testutil.RequireCreated(t, db, "mail.send", nil)
		fails(t, func(t testing.TB) { testutil.RequireNotCreated(t, db, "mail.send", nil) })
		contains(t, fails(t, func(t testing.TB) { testutil.Drain(t, p) }), "no route")
	})
}
