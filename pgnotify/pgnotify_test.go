package pgnotify_test

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
	"github.com/gorm-outbox/outbox/pgnotify"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

func TestCreatedElsewhere(t *testing.T) {
	t.Run("starts after the commit and not before", func(t *testing.T) {
		p := newPair(t, pgnotify.Options{})
		p.start(t)
		err := p.producer.Transaction(func(tx *gorm.DB) error {
			p.create(t, tx, 1)
			// Another transaction's task overtakes it, also after the reminders that the first one
			// may have caused.
			p.create(t, p.producer, 2)
			p.expect(t, 2)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		p.expect(t, 1)
	})

	t.Run("is notified of by the commit itself", func(t *testing.T) {
		// Every task finds an interval of its own, so there are no reminders.
		p := newPair(t, pgnotify.Options{Interval: time.Nanosecond})
		p.start(t)
		tx := p.producer.Begin()
		defer tx.Rollback()
		p.create(t, tx, 1)
		p.create(t, p.producer, 2)
		p.expect(t, 2) // whatever the first one's creation has sent before its commit is used up
		if err := tx.Commit().Error; err != nil {
			t.Fatal(err)
		}
		p.expect(t, 1)
	})

	t.Run("never runs after a rollback", func(t *testing.T) {
		p := newPair(t, pgnotify.Options{})
		p.start(t)
		undo := errors.New("undo")
		err := p.producer.Transaction(func(tx *gorm.DB) error {
			p.create(t, tx, 1)
			return undo
		})
		if !errors.Is(err, undo) {
			t.Fatal(err)
		}
		p.create(t, p.producer, 2)
		p.expect(t, 2)
	})

	t.Run("a start time that is moved to now wakes", func(t *testing.T) {
		p := newPair(t, pgnotify.Options{})
		p.start(t)
		task, err := outbox.Create(p.producer, path, note{1}, outbox.StartAfter(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		if err := outbox.Reschedule(p.producer, task.ID, time.Now()); err != nil {
			t.Fatal(err)
		}
		p.expect(t, 1)
	})
}

// A transaction that has spent the interval's notification and goes on must not silence one that
// commits before it.
func TestLongTransactionDoesNotSilenceOthers(t *testing.T) {
	for name, end := range map[string]func(*gorm.DB) *gorm.DB{
		"when it commits later":    (*gorm.DB).Commit,
		"when it rolls back later": (*gorm.DB).Rollback,
	} {
		t.Run(name, func(t *testing.T) {
			// So long that the second task does not notify by itself on a slow machine either.
			p := newPair(t, pgnotify.Options{Interval: 2 * time.Second})
			p.start(t)
			long := p.producer.Begin()
			defer long.Rollback()
			p.create(t, long, 1)
			p.create(t, p.producer, 2)
			p.expect(t, 2)
			if err := end(long).Error; err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestBurst(t *testing.T) {
	const tasks, writers = 1000, 16
	p := newPair(t, pgnotify.Options{Interval: 100 * time.Millisecond})
	stop := p.start(t)
	notified, heard := p.count(t)
	began := time.Now()
	var next atomic.Int32
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for n := int(next.Add(1)); n <= tasks; n = int(next.Add(1)) {
				err := p.producer.Transaction(func(tx *gorm.DB) error {
					_, err := outbox.Create(tx, path, note{n})
					return err
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	took := time.Since(began)
	// On a machine that stalls, a commit may come after the last reminder of its task; this one's
	// is not.
	p.create(t, p.producer, tasks+1)
	seen := map[int]bool{}
	for len(seen) < tasks+1 {
		select {
		case n := <-p.ran:
			if seen[n] {
				t.Fatalf("task %d ran twice", n)
			}
			seen[n] = true
		case <-time.After(30 * time.Second):
			t.Fatalf("%d of %d tasks ran", len(seen), tasks+1)
		}
	}
	stop()
	heard(t)
	// A task's and a reminder an interval, and the reminders that follow.
	if limit := 2*int32(took/(100*time.Millisecond)) + 10; notified.Load() > limit || limit > tasks/2 {
		t.Errorf("%d notifications for %d tasks in %v, want at most %d", notified.Load(), tasks, took, limit)
	}
	if notified.Load() == 0 {
		t.Error("the test has counted nothing")
	}
	t.Logf("%d notifications for %d tasks in %v", notified.Load(), tasks, took)
}

func TestTerminatedListenerHeals(t *testing.T) {
	p := newPair(t, pgnotify.Options{})
	p.start(t)
	pid := p.listener(t)
	if err := p.producer.Exec("SELECT pg_terminate_backend(?)", pid).Error; err != nil {
		t.Fatal(err)
	}
	dbtest.Eventually(t, "another backend listens", func() bool { return p.listener(t) != pid })
	p.create(t, p.producer, 1)
	p.expect(t, 1)
}

// What was notified while nobody listened is found when somebody does.
func TestListenWakesOnce(t *testing.T) {
	db := testdb.Postgres(t)
	pool, err := db.DB()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	woken := 0
	err = pgnotify.New(pgnotify.Options{Channel: t.Name()}).Listen(ctx, pool, func() {
		woken++
		cancel()
	})
	if err != nil || woken != 1 {
		t.Errorf("woken %d times, error %v; want 1, nil", woken, err)
	}
}

func TestConnectionComesBack(t *testing.T) {
	p := newPair(t, pgnotify.Options{})
	pool, err := p.consumer.DB()
	if err != nil {
		t.Fatal(err)
	}
	stop := p.start(t)
	if listening(t, pool) != 0 {
		t.Fatal("an idle connection listens") // the listener's is in use, and thus not among them
	}
	if pool.Stats().InUse == 0 {
		t.Fatal("no connection is taken for listening")
	}
	pid := p.listener(t)
	pool.SetMaxIdleConns(30)
	stop()
	dbtest.Eventually(t, "no connection in use", func() bool { return pool.Stats().InUse == 0 })
	var there bool
	if err := p.producer.Raw("SELECT count(*) = 1 FROM pg_stat_activity WHERE pid = ?", pid).Row().Scan(&there); err != nil || !there {
		t.Errorf("the listener's connection is there: %v, %v", there, err)
	}
	if n := listening(t, pool); n != 0 {
		t.Errorf("%d connections of the pool listen still", n)
	}
}

// listening counts the idle connections of a pool that listen.
func listening(t *testing.T, pool *sql.DB) (n int) {
	t.Helper()
	for range pool.Stats().Idle {
		conn, err := pool.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close() // not before all have been asked
		var one int
		if err := conn.QueryRowContext(t.Context(), "SELECT count(*) FROM pg_listening_channels()").Scan(&one); err != nil {
			t.Fatal(err)
		}
		n += one
	}
	return n
}

func TestOtherDriver(t *testing.T) {
	db := testdb.SQLite(t)
	pool, err := db.DB()
	if err != nil {
		t.Fatal(err)
	}
	w := pgnotify.New(pgnotify.Options{})
	err = w.Listen(t.Context(), pool, func() { t.Error("woken") })
	if !errors.Is(err, pgnotify.ErrDriver) || !strings.Contains(err.Error(), "SQLite") {
		t.Errorf("Listen: %v, want ErrDriver with the driver's type", err)
	}
	if n := pool.Stats().InUse; n != 0 {
		t.Errorf("%d connections in use", n)
	}
	if err := w.Created(t.Context(), pool, pool); err == nil {
		t.Error("Created: no error from a database without pg_notify")
	}
}

func TestNewRefusesWhatCannotWork(t *testing.T) {
	for name, o := range map[string]pgnotify.Options{
		"long channel":        {Channel: strings.Repeat("x", 64)},
		"channel with a zero": {Channel: "a\x00"},
		"negative interval":   {Interval: -1},
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			pgnotify.New(o)
		})
	}
}

// A channel's name is an identifier for LISTEN and a text for pg_notify; both must mean the same.
func TestChannelNames(t *testing.T) {
	for _, name := range []string{"Mixed Case", `quo"ted`, "sémantique", strings.Repeat("x", 63)} {
		t.Run(name, func(t *testing.T) {
			db := testdb.Postgres(t)
			pool, err := db.DB()
			if err != nil {
				t.Fatal(err)
			}
			w := pgnotify.New(pgnotify.Options{Channel: name})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			woken, done := make(chan bool, 10), make(chan error, 1)
			go func() { done <- w.Listen(ctx, pool, func() { woken <- true }) }()
			for i := range 2 {
				select {
				case <-woken:
				case err := <-done:
					t.Fatal(err)
				case <-time.After(30 * time.Second):
					t.Fatal("not woken within 30 s")
				}
				if i == 0 {
					if err := w.Created(t.Context(), pool, pool); err != nil {
						t.Fatal(err)
					}
				}
			}
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}
