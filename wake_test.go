package outbox_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
	"github.com/gorm-outbox/outbox/internal/dialect"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

// hourly are options with which only a wake-up or the timer can be in time.
func hourly(hooks ...outbox.Hooks) outbox.Options {
	opts := quick(hooks...)
	opts.Scan = "@every 1h"
	return opts
}

// notes registers a handler that tells its task's id.
func notes(p *outbox.Plugin, path string) <-chan string {
	ran := make(chan string, 10_000)
	p.Handle(path, func(ctx context.Context) error {
		task, _ := outbox.TaskFrom(ctx)
		ran <- task.ID
		return nil
	})
	return ran
}

// startAwake runs a plugin and returns when its first look at the tables is over.
func startAwake(t *testing.T, db *gorm.DB, p *outbox.Plugin, path string, ran <-chan string) (stop func()) {
	t.Helper()
	stop = dbtest.Start(t, p)
	dbtest.Create(t, db, path, nil)
	dbtest.Receive(t, ran)
	dbtest.Eventually(t, "no task is left", func() bool { return dbtest.Count(t, db, &outbox.TaskModel{}) == 0 })
	return stop
}

// held keeps a transaction open for a while.
func held(d time.Duration) { <-time.After(d) }

func TestWakeUpAfterCommit(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		var ran <-chan string
		p := dbtest.Install(t, db, hourly(), func(p *outbox.Plugin) {
			ran = notes(p, "note")
			p.Handle("fails", func(context.Context) error { return errors.New("no") })
			p.Handle("makes.tx", func(_ context.Context, tx *gorm.DB) error {
				_, err := outbox.Create(tx, "note", nil)
				return err
			})
			p.Handle("makes.nested", func(_ context.Context, tx *gorm.DB) error {
				return tx.Transaction(func(tx *gorm.DB) error {
					_, err := outbox.Create(tx, "note", nil)
					return err
				})
			})
		})
		startAwake(t, db, p, "note", ran)
		in := func(db *gorm.DB, f func(tx *gorm.DB)) func(*testing.T) {
			return func(t *testing.T) {
				if err := db.Transaction(func(tx *gorm.DB) error { f(tx); return nil }); err != nil {
					t.Fatal(err)
				}
			}
		}
		note := func(tx *gorm.DB, opts ...outbox.CreateOption) *outbox.TaskModel {
			return dbtest.Create(t, tx, "note", nil, opts...)
		}
		batch := func(tx *gorm.DB, n int) {
			if _, err := outbox.CreateBatch(tx, newNotes(n)...); err != nil {
				t.Error(err)
			}
		}
		failed := dbtest.Create(t, db, "fails", nil).ID
		dbtest.Ended(t, db, failed)
		prepared := db.Session(&gorm.Session{PrepareStmt: true})
		for _, tt := range []struct {
			name  string
			tasks int
			make  func(*testing.T)
		}{
			{"autocommit", 1, func(t *testing.T) { note(db) }},
			{"autocommit of a prepared session", 1, func(t *testing.T) { note(prepared) }},
			{"on a connection", 1, func(t *testing.T) {
				if err := db.Connection(func(c *gorm.DB) error { note(c); return nil }); err != nil {
					t.Error(err)
				}
			}},
			{"committed at once", 1, in(db, func(tx *gorm.DB) { note(tx) })},
			{"held open", 1, in(db, func(tx *gorm.DB) { note(tx); held(300 * time.Millisecond) })},
			{"begun by hand", 1, func(t *testing.T) {
				tx := db.Begin()
				note(tx)
				if err := tx.Commit().Error; err != nil {
					t.Error(err)
				}
			}},
			{"nested", 1, in(db, func(tx *gorm.DB) { in(tx, func(tx *gorm.DB) { note(tx) })(t); held(50 * time.Millisecond) })},
			{"prepared session", 1, in(prepared, func(tx *gorm.DB) { note(tx); held(50 * time.Millisecond) })},
			{"two in one transaction", 2, in(db, func(tx *gorm.DB) { note(tx); held(50 * time.Millisecond); note(tx) })},
			{"batch by itself", 25, func(t *testing.T) { batch(db, 25) }},
			{"batch in a transaction", 25, in(db, func(tx *gorm.DB) { batch(tx, 25); held(50 * time.Millisecond) })},
			{"batch of more than are watched", 600, func(t *testing.T) { batch(db, 600) }},
			{"rescheduled to now", 1, func(t *testing.T) {
				task := note(db, outbox.StartAfter(time.Hour))
				in(db, func(tx *gorm.DB) {
					if err := outbox.Reschedule(tx, task.ID, time.Now()); err != nil {
						t.Error(err)
					}
					held(50 * time.Millisecond)
				})(t)
			}},
			{"made by a transactional handler", 1, func(t *testing.T) { dbtest.Create(t, db, "makes.tx", nil) }},
			{"made in a nested transaction of a handler", 1, func(t *testing.T) { dbtest.Create(t, db, "makes.nested", nil) }},
		} {
			t.Run(tt.name, func(t *testing.T) {
				tt.make(t)
				for range tt.tasks {
					dbtest.Receive(t, ran)
				}
				dbtest.Eventually(t, "no task is left", func() bool { return dbtest.Count(t, db, &outbox.TaskModel{}) == 0 })
			})
		}
		t.Run("re-run", func(t *testing.T) {
			task, err := outbox.Rerun(db, failed)
			if err != nil {
				t.Fatal(err)
			}
			dbtest.Ended(t, db, task.ID)
		})
	})
}

// newNotes are n tasks.
func newNotes(n int) []outbox.NewTask {
	list := make([]outbox.NewTask, n)
	for i := range list {
		list[i] = outbox.NewTask{Func: "note"}
	}
	return list
}

func TestRolledBackTaskNeverRuns(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		var ran <-chan string
		p := dbtest.Install(t, db, hourly(), func(p *outbox.Plugin) { ran = notes(p, "note") })
		startAwake(t, db, p, "note", ran)
		undo := errors.New("undo")
		for name, roll := range map[string]func() error{
			"at once": func() error {
				return db.Transaction(func(tx *gorm.DB) error { dbtest.Create(t, tx, "note", nil); return undo })
			},
			"late": func() error {
				return db.Transaction(func(tx *gorm.DB) error {
					dbtest.Create(t, tx, "note", nil)
					held(100 * time.Millisecond)
					return undo
				})
			},
			"to a savepoint": func() error {
				return db.Transaction(func(tx *gorm.DB) error {
					err := tx.Transaction(func(tx *gorm.DB) error { dbtest.Create(t, tx, "note", nil); return undo })
					held(50 * time.Millisecond)
					if !errors.Is(err, undo) {
						return err
					}
					return nil
				})
			},
		} {
			t.Run(name, func(t *testing.T) {
				if err := roll(); err != nil && !errors.Is(err, undo) {
					t.Fatal(err)
				}
				next := dbtest.Create(t, db, "note", nil)
				if got := dbtest.Receive(t, ran); got != next.ID {
					t.Errorf("task %s ran, want only %s", got, next.ID)
				}
				dbtest.Ended(t, db, next.ID)
				if n := dbtest.Count(t, db, &outbox.TaskModel{}); n != 0 || len(ran) != 0 {
					t.Errorf("%d tasks wait, %d more ran", n, len(ran))
				}
				dbtest.Eventually(t, "no hint is left", func() bool { transactions, tasks := p.Hints(); return transactions+tasks == 0 })
			})
		}
	})
}

// starting does something when Run begins.
type starting struct {
	dialect.Dialect
	do func()
}

func (s starting) Check(ctx context.Context, c dialect.Conn) error {
	s.do()
	return s.Dialect.Check(ctx, c)
}

// A transaction is open from before the dispatcher's first look until after it.
func TestCommitAfterTheFirstLook(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		if db.Name() == "sqlite" {
			t.Skip("the open transaction would keep the dispatcher from starting")
		}
		var ran <-chan string
		p := dbtest.Install(t, db, hourly(), func(p *outbox.Plugin) { ran = notes(p, "note") })
		first := dbtest.Create(t, db, "note", nil).ID
		var tx *gorm.DB
		var late string
		p.Intercept(func(d dialect.Dialect) dialect.Dialect {
			return starting{d, func() {
				if tx == nil {
					tx = db.Begin()
					late = dbtest.Create(t, tx, "note", nil).ID
				}
			}}
		})
		dbtest.Start(t, p)
		if id := dbtest.Receive(t, ran); id != first {
			t.Fatalf("%s ran, want %s", id, first)
		}
		dbtest.Ended(t, db, first)
		if err := tx.Commit().Error; err != nil {
			t.Fatal(err)
		}
		if id := dbtest.Receive(t, ran); id != late {
			t.Errorf("%s ran, want %s", id, late)
		}
	})
}

// brokenWaker cannot wake, and does what its caller's transaction must bear.
type brokenWaker struct {
	quietWaker
	broken *atomic.Bool
}

func (w brokenWaker) Created(ctx context.Context, conn gorm.ConnPool, _ *sql.DB) error {
	if w.broken.Load() {
		return errors.New("no route")
	}
	return nil
}

type quietWaker struct{}

func (quietWaker) Created(context.Context, gorm.ConnPool, *sql.DB) error { return nil }
func (quietWaker) Listen(ctx context.Context, _ *sql.DB, _ func()) error {
	<-ctx.Done()
	return nil
}

// A wake-up that fails fails no creation, whose row is in: neither in a transaction nor outside. It
// is said once.
func TestFailingWaker(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		var said logBuffer
		var broken atomic.Bool
		broken.Store(true)
		p := dbtest.Install(t, db, outbox.Options{Logger: said.logger(),
			Wakers: []outbox.Waker{quietWaker{}, brokenWaker{broken: &broken}}}, func(p *outbox.Plugin) {
			p.Handle(cancelOrder, func(context.Context) error { return nil })
		})
		var made []string
		err := db.Transaction(func(tx *gorm.DB) error {
			made = append(made, dbtest.Create(t, tx, cancelOrder, nil).ID)
			batch, err := outbox.CreateBatch(tx, outbox.NewTask{Func: cancelOrder}, outbox.NewTask{Func: cancelOrder})
			if err != nil {
				return err
			}
			made = append(made, batch[0].ID, batch[1].ID)
			later := dbtest.Create(t, tx, cancelOrder, nil, outbox.StartAfter(time.Hour))
			made = append(made, later.ID)
			return outbox.Reschedule(tx, later.ID, time.Now())
		})
		if err != nil {
			t.Fatal(err)
		}
		made = append(made, dbtest.Create(t, db, cancelOrder, nil).ID)
		if n, err := p.RunDue(t.Context()); n != len(made) || err != nil {
			t.Fatalf("%d ran, %v", n, err)
		}
		again, err := outbox.Rerun(db, made[0])
		if err != nil || !taskExists(t, db, again.ID) {
			t.Fatalf("re-run: %v", err)
		}
		if n := said.lines("level=WARN", "no route", "brokenWaker"); n != 1 {
			t.Errorf("said %d times", n)
		}
		broken.Store(false)
		dbtest.Create(t, db, cancelOrder, nil)
		broken.Store(true)
		dbtest.Create(t, db, cancelOrder, nil)
		if n := said.lines("no route"); n != 2 {
			t.Errorf("after it had worked: said %d times", n)
		}
	})
}

// listening counts how often it is asked to listen, and ends with an error each time.
type listening struct {
	quietWaker
	err   error
	calls *atomic.Int32
}

func (l listening) Listen(context.Context, *sql.DB, func()) error {
	l.calls.Add(1)
	return l.err
}

// A Permanent error of Listen is said once, as what it is, and Listen is not called again; after
// another error it is.
func TestWakerThatCannotListen(t *testing.T) {
	db := testdb.SQLite(t)
	var said logBuffer
	var never, sometimes atomic.Int32
	p := dbtest.Install(t, db, outbox.Options{Logger: said.logger(), Wakers: []outbox.Waker{
		listening{err: fmt.Errorf("listen: %w", outbox.Permanent(errors.New("no ears"))), calls: &never},
		listening{err: errors.New("not now"), calls: &sometimes},
	}}, nil)
	stop := dbtest.Start(t, p)
	dbtest.Eventually(t, "it listens again after an error", func() bool { return sometimes.Load() >= 3 })
	stop()
	if n := never.Load(); n != 1 {
		t.Errorf("it was asked %d times after a Permanent error", n)
	}
	if n := said.lines("level=WARN", "a Waker cannot listen", "no ears"); n != 1 || said.lines("database error", "no ears") != 0 {
		t.Errorf("said %d times", n)
	}
}
