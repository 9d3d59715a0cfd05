package outbox

import (
	"context"
	"database/sql"
	"net/url"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-outbox/outbox/internal/dialect"
	"github.com/gorm-outbox/outbox/internal/dispatch"
)

// Hints lets the external tests see how many transactions and tasks are watched.
func (p *Plugin) Hints() (transactions, tasks int) { return p.commits.Pending() }

// sqliteFile is a fresh database; testutil imports this package, so its helpers cannot be used
// here.
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

// What is created and rescheduled reaches the commit watcher, with the partitions where it waits.
func TestCreationsAreWatched(t *testing.T) {
	db := sqliteFile(t)
	p := New(Options{})
	p.Handle("note", func(context.Context) error { return nil })
	if err := db.Use(p); err != nil {
		t.Fatal(err)
	}
	if err := p.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.commits.Activate()
	defer p.commits.Deactivate()
	ctx, cancel := context.WithCancel(t.Context())
	woken, ended := make(chan []dialect.Partition, 1000), make(chan struct{})
	go func() {
		defer close(ended)
		p.commits.Watch(ctx, func(partitions []dialect.Partition) { woken <- partitions })
	}()
	defer func() { cancel(); <-ended }()
	note := func(t *testing.T, tx *gorm.DB, opts ...CreateOption) *TaskModel {
		task, err := Create(tx, "note", nil, opts...)
		if err != nil {
			t.Fatal(err)
		}
		return task
	}
	// expect waits for a wake-up in these partitions, past those of earlier tasks.
	expect := func(t *testing.T, want ...dialect.Partition) {
		t.Helper()
		for limit := time.After(30 * time.Second); ; {
			select {
			case got := <-woken:
				if slices.Equal(got, want) {
					return
				}
			case <-limit:
				t.Fatalf("no wake-up in %v within 30 s", want)
			}
		}
	}
	for kind, db := range map[string]*gorm.DB{"plain": db, "prepared": db.Session(&gorm.Session{PrepareStmt: true})} {
		t.Run(kind, func(t *testing.T) {
			for len(woken) > 0 {
				<-woken
			}
			tx := db.Begin()
			note(t, tx, Queue(kind), Priority(1))
			if transactions, _ := p.Hints(); transactions == 0 {
				t.Error("the transaction is not watched")
			}
			select {
			case partitions := <-woken:
				if slices.Contains(partitions, dialect.Partition{Queue: kind, Priority: 1}) {
					t.Error("woken before the commit")
				}
			case <-time.After(20 * time.Millisecond):
			}
			if err := tx.Commit().Error; err != nil {
				t.Fatal(err)
			}
			expect(t, dialect.Partition{Queue: kind, Priority: 1})
		})
	}
	t.Run("rescheduled, so the partition is not known", func(t *testing.T) {
		task := note(t, db, StartAfter(time.Hour))
		if err := Reschedule(db, task.ID, time.Now()); err != nil {
			t.Fatal(err)
		}
		expect(t)
	})
	t.Run("not those of a function that this process does not run", func(t *testing.T) {
		p.commits.Deactivate() // forgets the earlier ones
		p.commits.Activate()
		p.opts.ProducerOnly = true
		defer func() { p.opts.ProducerOnly = false }()
		if _, err := Create(db, "elsewhere", nil); err != nil {
			t.Fatal(err)
		}
		if transactions, tasks := p.Hints(); transactions+tasks != 0 {
			t.Errorf("%d transactions and %d tasks are watched", transactions, tasks)
		}
	})
}

func TestTransactionBelowWhatIsAroundIt(t *testing.T) {
	db := sqliteFile(t)
	pool, err := db.DB()
	if err != nil {
		t.Fatal(err)
	}
	tx, err := pool.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	for name, conn := range map[string]gorm.ConnPool{
		"sql.Tx":                        tx,
		"PreparedStmtTX":                &gorm.PreparedStmtTX{Tx: tx},
		"a handler's":                   &dispatch.Tx{Tx: tx},
		"a handler's in PreparedStmtTX": &gorm.PreparedStmtTX{Tx: &dispatch.Tx{Tx: tx}},
	} {
		if got := transaction(conn); got != any(tx) {
			t.Errorf("%s: %T", name, got)
		}
	}
	conn, err := pool.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, conn := range []gorm.ConnPool{pool, conn, db.Statement.ConnPool, (*sql.DB)(nil)} {
		if got := transaction(conn); got != nil {
			t.Errorf("%T in %T, which is no transaction", got, conn)
		}
	}
}
