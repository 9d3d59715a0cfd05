package outbox

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"net/url"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-outbox/outbox/internal/dialect"
)

// Hints lets the external tests see how many transactions and tasks are watched.
func (p *Plugin) Hints() (transactions, tasks int) {
	p.wake.mu.Lock()
	defer p.wake.mu.Unlock()
	return len(p.wake.byTx), len(p.wake.byTask)
}

// sqliteFile is a fresh database; testutil imports this package, so its helpers cannot be used here.
func sqliteFile(t *testing.T) *gorm.DB {
	t.Helper()
	dsn := url.URL{Scheme: "file", Path: filepath.ToSlash(filepath.Join(t.TempDir(), "outbox.db")),
		RawQuery: "_journal_mode=WAL&_busy_timeout=5000&_txlock=immediate"}
	db, err := gorm.Open(sqlite.Open(dsn.String()), &gorm.Config{Logger: logger.Discard})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if pool, err := db.DB(); err == nil {
			pool.Close()
		}
	})
	return db
}

// watchedDB is a fresh database whose plugin hands hints out as if a dispatcher watched; nothing polls them.
func watchedDB(t *testing.T, db *gorm.DB) *Plugin {
	t.Helper()
	p := New(Options{})
	p.Handle("note", func(context.Context) error { return nil })
	if err := db.Use(p); err != nil {
		t.Fatal(err)
	}
	if err := p.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.wake.active, p.wake.changed = 1, make(chan struct{}, 1)
	p.wake.byTx, p.wake.byTask = map[gorm.ConnPool]*hint{}, map[string]*hint{}
	return p
}

// look polls until every transaction that was asked has answered, for a busy machine may need longer than poll waits.
func look(w *wakeups, now time.Time) (ask bool, next time.Time) {
	ask, next = w.poll(now)
	for _, h := range w.byTx {
		for h.asking.Load() {
			runtime.Gosched()
		}
		if h.found.Load() && !h.ended {
			h.next = now
			again, then := w.poll(now)
			return ask || again, then
		}
	}
	return ask, next
}

// drainHints polls as watch does, on a clock of its own, until no hint is left; it counts how often the database was to
// be asked.
func drainHints(t *testing.T, w *wakeups, now time.Time) (asked int) {
	t.Helper()
	for range 1000 {
		ask, next := look(w, now)
		if ask {
			asked++
		}
		if next.IsZero() {
			if len(w.byTx) != 0 || len(w.byTask) != 0 || !w.dueAt.IsZero() {
				t.Fatalf("nothing to poll, but hints are left: %d transactions, %d tasks", len(w.byTx), len(w.byTask))
			}
			return asked
		}
		now = next
	}
	t.Fatal("the polls do not end")
	return 0
}

func TestHintsAreDropped(t *testing.T) {
	db := sqliteFile(t)
	p := watchedDB(t, db)
	w := &p.wake
	note := func(t *testing.T, tx *gorm.DB, opts ...Option) *TaskModel {
		task, err := Create(tx, "note", nil, opts...)
		if err != nil {
			t.Fatal(err)
		}
		return task
	}
	for name, end := range map[string]func(*gorm.DB) *gorm.DB{"commit": (*gorm.DB).Commit, "rollback": (*gorm.DB).Rollback} {
		for kind, db := range map[string]*gorm.DB{"": db, " of a prepared session": db.Session(&gorm.Session{PrepareStmt: true})} {
			t.Run("after the "+name+kind, func(t *testing.T) {
				tx := db.Begin()
				note(t, tx)
				note(t, tx)
				if len(w.byTx) != 1 || len(w.byTask) != 2 {
					t.Errorf("%d transactions and %d tasks are watched, want 1 and 2", len(w.byTx), len(w.byTask))
				}
				now := time.Now()
				for range 50 {
					ask, next := w.poll(now)
					if ask || next.IsZero() {
						t.Fatalf("in the open transaction: ask %v, next %v", ask, next)
					}
					now = next
				}
				if err := end(tx).Error; err != nil {
					t.Fatal(err)
				}
				if n := drainHints(t, w, now); n == 0 || n > len(afterCommit) {
					t.Errorf("the database was to be asked %d times", n)
				}
			})
		}
	}
	t.Run("and say where to look", func(t *testing.T) {
		w.asked()
		note(t, db, Queue("mail"), Priority(1))
		look(w, time.Now())
		if lanes := w.asked(); len(lanes) != 1 || lanes[0] != (dialect.Lane{Queue: "mail", Priority: 1}) {
			t.Errorf("in %v", lanes)
		}
		drainHints(t, w, time.Now())
		w.asked()
		task := note(t, db, StartAfter(time.Hour))
		note(t, db)
		if err := Reschedule(db, task.ID, time.Now()); err != nil {
			t.Fatal(err)
		}
		look(w, time.Now())
		if lanes := w.asked(); lanes != nil {
			t.Errorf("in %v, though a task was rescheduled whose lane is not known", lanes)
		}
		drainHints(t, w, time.Now().Add(2*time.Hour))
		w.asked()
	})
	t.Run("of a function that this process does not run", func(t *testing.T) {
		p.opts.ProducerOnly = true
		defer func() { p.opts.ProducerOnly = false }()
		if _, err := Create(db, "elsewhere", nil); err != nil {
			t.Fatal(err)
		}
		if len(w.byTx) != 0 || len(w.byTask) != 0 {
			t.Errorf("%d transactions and %d tasks are watched", len(w.byTx), len(w.byTask))
		}
	})
	t.Run("when its tasks have been claimed", func(t *testing.T) {
		tx := db.Begin()
		a, b := note(t, tx), note(t, tx)
		if err := tx.Commit().Error; err != nil {
			t.Fatal(err)
		}
		if ask, _ := look(w, time.Now().Add(time.Second)); !ask {
			t.Error("the commit was not seen")
		}
		w.seen([]*run{{task: a}, {task: b}, {task: &TaskModel{ID: "somebody else's"}}})
		if len(w.byTx) != 0 || len(w.byTask) != 0 {
			t.Errorf("%d transactions and %d tasks are left", len(w.byTx), len(w.byTask))
		}
	})
	t.Run("of an autocommit", func(t *testing.T) {
		note(t, db)
		if ask, _ := w.poll(time.Now()); !ask {
			t.Error("the database is not asked at once")
		}
		drainHints(t, w, time.Now())
	})
	t.Run("of a later start time", func(t *testing.T) {
		note(t, db, StartAfter(time.Hour))
		note(t, db, StartAfter(time.Minute))
		now := time.Now()
		if ask, next := w.poll(now.Add(2 * time.Second)); ask && len(w.byTx) == 0 && next.Before(now.Add(50*time.Second)) {
			t.Errorf("ask %v, next in %v", ask, next.Sub(now))
		}
		if n := drainHints(t, w, now.Add(2*time.Hour)); n == 0 {
			t.Error("the database was not to be asked")
		}
	})
	t.Run("of a later start time, once its transaction is over", func(t *testing.T) {
		tx := db.Begin()
		note(t, tx, StartAfter(time.Hour))
		now := time.Now()
		if ask, _ := w.poll(now); ask || !w.dueAt.IsZero() || len(w.byTx) != 1 {
			t.Error("a start time counts before the commit")
		}
		if err := tx.Commit().Error; err != nil {
			t.Fatal(err)
		}
		if ask, next := look(w, now.Add(time.Second)); ask || len(w.byTx) != 0 || next.Before(now.Add(59*time.Minute)) {
			t.Errorf("ask %v, next in %v", ask, next.Sub(now))
		}
		drainHints(t, w, now.Add(time.Hour))
	})
	t.Run("without a dispatcher there are none", func(t *testing.T) {
		w.active = 0
		note(t, db)
		note(t, db, StartAfter(time.Minute))
		if len(w.byTx) != 0 || len(w.byTask) != 0 || !w.dueAt.IsZero() {
			t.Error("hints are kept that nobody polls")
		}
		w.active = 1
	})
}

// An application that never ends a transaction must not be polled at the speed of light.
func TestOpenTransactionIsPolledMoreAndMoreSeldom(t *testing.T) {
	db := sqliteFile(t)
	p := watchedDB(t, db)
	tx := db.Begin()
	defer tx.Rollback()
	if _, err := Create(tx, "note", nil); err != nil {
		t.Fatal(err)
	}
	polls, now := 0, time.Now()
	for end := now.Add(time.Minute); now.Before(end); polls++ {
		_, now = p.wake.poll(now)
	}
	if polls > 1000 {
		t.Errorf("%d polls within a minute", polls)
	}
}

func TestTxOver(t *testing.T) {
	db := sqliteFile(t)
	pool, err := db.DB()
	if err != nil {
		t.Fatal(err)
	}
	begin := func(t *testing.T) *sql.Tx {
		tx, err := pool.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { tx.Rollback() })
		return tx
	}
	for name, wrap := range map[string]func(*testing.T) (*sql.Tx, gorm.ConnPool){
		"sql.Tx": func(t *testing.T) (*sql.Tx, gorm.ConnPool) { tx := begin(t); return tx, tx },
		"PreparedStmtTX": func(t *testing.T) (*sql.Tx, gorm.ConnPool) {
			conn := db.Session(&gorm.Session{PrepareStmt: true}).Begin().Statement.ConnPool.(*gorm.PreparedStmtTX)
			tx := conn.Tx.(*sql.Tx)
			t.Cleanup(func() { tx.Rollback() })
			return tx, conn
		},
		"guardedTx": func(t *testing.T) (*sql.Tx, gorm.ConnPool) { tx := begin(t); return tx, &guardedTx{Tx: tx} },
	} {
		for how, end := range map[string]func(*sql.Tx) error{"commit": (*sql.Tx).Commit, "rollback": (*sql.Tx).Rollback} {
			t.Run(name+" after "+how, func(t *testing.T) {
				tx, conn := wrap(t)
				over := txOver(conn)
				if over == nil {
					t.Fatal("cannot be told")
				}
				if over() {
					t.Error("over before its end")
				}
				if _, err := tx.ExecContext(t.Context(), "SELECT 1"); err != nil || over() {
					t.Errorf("after asking it cannot be used, or is over: %v", err)
				}
				if err := end(tx); err != nil || !over() {
					t.Errorf("not over after its end, %v", err)
				}
			})
		}
	}
	t.Run("open while rows are being read", func(t *testing.T) {
		tx := begin(t)
		rows, err := tx.QueryContext(t.Context(), "SELECT 1 UNION ALL SELECT 2")
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		if !rows.Next() || txOver(tx)() || !rows.Next() {
			t.Error("asking disturbed the reader")
		}
	})
	t.Run("over when its context has ended", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		tx, err := pool.BeginTx(ctx, nil)
		if err != nil {
			t.Fatal(err)
		}
		over := txOver(tx)
		cancel()
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for limit := time.After(30 * time.Second); !over(); {
			select {
			case <-tick.C:
			case <-limit:
				t.Fatal("not over within 30 s")
			}
		}
	})
	t.Run("of a pool nothing can be told", func(t *testing.T) {
		if txOver(pool) != nil {
			t.Error("a pool is no transaction")
		}
	})
}

// countingDriver counts what is sent to the database.
type countingDriver struct{ sent atomic.Int64 }

func (d *countingDriver) Connect(context.Context) (driver.Conn, error) { return countingConn{d}, nil }
func (d *countingDriver) Driver() driver.Driver                        { return nil }

type countingConn struct{ *countingDriver }

func (c countingConn) Prepare(string) (driver.Stmt, error) {
	c.sent.Add(1)
	return nil, driver.ErrBadConn
}
func (c countingConn) Close() error               { return nil }
func (c countingConn) Begin() (driver.Tx, error)  { return c, nil }
func (c countingConn) Ping(context.Context) error { c.sent.Add(1); return nil }
func (c countingConn) Commit() error              { return nil }
func (c countingConn) Rollback() error            { return nil }

func (c countingConn) ExecContext(context.Context, string, []driver.NamedValue) (driver.Result, error) {
	c.sent.Add(1)
	return driver.RowsAffected(0), nil
}

func TestTxOverSendsNothing(t *testing.T) {
	var counting countingDriver
	pool := sql.OpenDB(&counting)
	defer pool.Close()
	tx, err := pool.Begin()
	if err != nil {
		t.Fatal(err)
	}
	over := txOver(tx)
	for range 1000 {
		if over() {
			t.Fatal("over before its end")
		}
	}
	if n := counting.sent.Load(); n != 0 {
		t.Errorf("%d calls of the driver", n)
	}
	if _, err := tx.Exec("is counted"); err != nil || counting.sent.Load() != 1 {
		t.Errorf("the driver does not count: %d, %v", counting.sent.Load(), err)
	}
	if err := tx.Commit(); err != nil || !over() {
		t.Errorf("not over after its commit, %v", err)
	}
	if n := counting.sent.Load(); n != 1 {
		t.Errorf("%d calls of the driver after the commit", n-1)
	}
}
