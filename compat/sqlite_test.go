package compat

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
)

// eachSQLite runs a test with both drivers for SQLite: they take other parameters, and give other
// errors.
func eachSQLite(t *testing.T, test func(t *testing.T, d database)) {
	t.Helper()
	for _, d := range []database{mattn, pure} {
		t.Run(d.name, func(t *testing.T) { test(t, d) })
	}
}

func TestRound(t *testing.T) {
	eachDB(t, func(t *testing.T, d database) {
		db := d.open(t, nil)
		round(t, db, install(t, db, outbox.Options{}))
	})
}

func TestBatchOf3000(t *testing.T) {
	eachDB(t, func(t *testing.T, d database) {
		db := d.open(t, nil)
		p := install(t, db, outbox.Options{})
		dbtest.Start(t, p)
		batch(t, db, nothing, orderArgs{}, 3000)
	})
}

func TestRetry(t *testing.T) {
	eachDB(t, func(t *testing.T, d database) {
		db := d.open(t, nil)
		p := outbox.New(outbox.Options{Logger: slog.New(slog.DiscardHandler),
			Backoff: func(int) time.Duration { return 10 * time.Millisecond }})
		p.Handle("orders.flaky", func(ctx context.Context, tx *gorm.DB, a orderArgs) error {
			if err := tx.Create(&order{Item: "trace"}).Error; err != nil {
				return err
			}
			if task, _ := outbox.TaskFrom(ctx); task.Attempt < 3 {
				return errFail
			}
			return nil
		})
		if err := db.Use(p); err != nil {
			t.Fatal(err)
		}
		migrate(t, db, p)
		dbtest.Start(t, p)
		task := dbtest.Create(t, db, "orders.flaky", orderArgs{}, outbox.MaxAttempts(5))
		past := dbtest.Ended(t, db, task.ID)
		if past.Status != outbox.StatusSuccess || past.Attempt != 3 || len(past.Errors) != 2 {
			t.Errorf("ended as %s after %d attempts with errors %v", past.Status, past.Attempt, past.Errors)
		}
		if n := dbtest.Count(t, db, &order{}); n != 1 {
			t.Errorf("%d traces of transactional runs, want only the last one's", n)
		}
	})
}

// Somebody else's write lock is waited for: nothing is lost, no attempt is counted, and nobody is
// alarmed.
func TestForeignWriteLock(t *testing.T) {
	eachSQLite(t, func(t *testing.T, d database) {
		dsn := d.dsn(t)
		foreign := d.openDSN(t, dsn, nil)
		// The lock outlasts the busy timeout, so that every step of the dispatcher meets the error
		// itself.
		db := d.openDSN(t, strings.Replace(dsn, "5000", "20", 1), nil)
		var said logs
		p := newPlugin(db, outbox.Options{Logger: said.logger(slog.LevelWarn), Concurrency: 2, Scan: "@every 20ms",
			Heartbeat: 50 * time.Millisecond, HeartbeatLimit: 10 * time.Second})
		started, locked := make(chan struct{}, 12), make(chan struct{})
		p.Handle("orders.wait", func(context.Context, orderArgs) error {
			started <- struct{}{}
			<-locked
			return nil
		})
		if err := db.Use(p); err != nil {
			t.Fatal(err)
		}
		migrate(t, db, p)
		for range 2 {
			dbtest.Create(t, db, "orders.wait", orderArgs{}, outbox.Priority(1))
		}
		var orders []order
		for range 10 {
			o, _ := place(t, db, updateTx, "done")
			orders = append(orders, o)
			dbtest.Create(t, db, "orders.wait", orderArgs{})
		}
		dbtest.Start(t, p)
		<-started
		<-started
		lock := foreign.Begin()
		if err := lock.Exec("UPDATE orders SET item = item").Error; err != nil {
			t.Fatal(err)
		}
		close(locked)
		<-time.After(500 * time.Millisecond)
		if n := dbtest.Count(t, foreign, &outbox.HistoryModel{}); n != 0 {
			t.Errorf("%d tasks ended under the lock, so the test shows nothing", n)
		}
		if err := lock.Commit().Error; err != nil {
			t.Fatal(err)
		}
		dbtest.Eventually(t, "all is done", func() bool { return dbtest.Count(t, db, &outbox.TaskModel{}) == 0 })
		var past []outbox.HistoryModel
		if err := db.Find(&past).Error; err != nil {
			t.Fatal(err)
		}
		if len(past) != 22 {
			t.Errorf("%d tasks in history, want 22", len(past))
		}
		for _, h := range past {
			if h.Status != outbox.StatusSuccess || h.Attempt-h.Uncounted != 1 {
				t.Errorf("%s ended as %s, attempt %d, %d uncounted: %s", h.Func, h.Status, h.Attempt, h.Uncounted, deref(h.Error))
			}
		}
		for _, o := range orders {
			wantStatus(t, db, o.ID, "done")
		}
		if text := said.String(); strings.Contains(text, "level=ERROR") {
			t.Errorf("logged as error:\n%s", text)
		}
	})
}

// A single connection is enough: nothing is held while an ordinary handler runs.
func TestMaxOpenConns1(t *testing.T) {
	eachSQLite(t, func(t *testing.T, d database) {
		for _, prepare := range []bool{false, true} {
			t.Run(fmt.Sprintf("PrepareStmt %v", prepare), func(t *testing.T) {
				db := d.open(t, &gorm.Config{PrepareStmt: prepare})
				pool, err := db.DB()
				if err != nil {
					t.Fatal(err)
				}
				pool.SetMaxOpenConns(1)
				p := install(t, db, outbox.Options{
					Heartbeat: 20 * time.Millisecond, HeartbeatLimit: 30 * time.Second, Scan: "@every 50ms"})
				round(t, db, p)
				dbtest.Start(t, p)
				var ids []string
				for i := range 20 {
					_, task := place(t, db, []string{update, updateTx}[i%2], "done")
					ids = append(ids, task.ID)
				}
				for _, id := range ids {
					if past := dbtest.Ended(t, db, id); past.Status != outbox.StatusSuccess {
						t.Errorf("%s ended as %s: %s", past.Func, past.Status, deref(past.Error))
					}
				}
			})
		}
	})
}
