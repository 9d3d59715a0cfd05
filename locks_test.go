package outbox_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
	"github.com/gorm-outbox/outbox/internal/dialect"
)

// eachDBWithRowLocks leaves out SQLite, where one transaction writes at a time.
func eachDBWithRowLocks(t *testing.T, test func(t *testing.T, db *gorm.DB)) {
	t.Helper()
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		if db.Name() == "sqlite" {
			t.Skip("there are no locks of single rows")
		}
		test(t, db)
	})
}

// On MySQL who could not create a task because of its key has locked that key until the transaction
// ends, but not its row.
func TestHeldKeyKeepsNoOther(t *testing.T) {
	t.Parallel()
	eachDBWithRowLocks(t, func(t *testing.T, db *gorm.DB) {
		gate := make(chan struct{})
		var log logBuffer
		opts := quick()
		opts.Logger = log.logger()
		p := dbtest.Install(t, db, opts, func(p *outbox.Plugin) {
			p.Handle("gated", func(context.Context) error {
				<-gate
				return nil
			})
		})
		later := make([]outbox.NewTask, 1000) // or the server may find rows of known ids through any index
		for i := range later {
			later[i] = outbox.NewTask{Func: "gated", Options: []outbox.CreateOption{outbox.StartAfter(time.Hour)}}
		}
		if _, err := outbox.CreateBatch(db, later...); err != nil {
			t.Fatal(err)
		}
		if db.Name() == "mysql" {
			if err := db.Exec("ANALYZE TABLE outbox_tasks").Error; err != nil {
				t.Fatal(err)
			}
		}
		keyed := dbtest.Create(t, db, "gated", nil, outbox.Key("key")).ID
		var others []string
		for range 5 {
			others = append(others, dbtest.Create(t, db, "gated", nil).ID)
		}
		dbtest.Start(t, p)
		dbtest.Eventually(t, "all run", func() bool { return inState(t, db, outbox.StateRunning) == 6 })
		held := db.Begin()
		defer held.Rollback()
		if _, err := outbox.Create(held, "gated", nil, outbox.Key("key")); !errors.Is(err, outbox.ErrDuplicateKey) {
			t.Fatal(err)
		}
		close(gate)
		for _, id := range others {
			if past := dbtest.Ended(t, db, id); past.Status != outbox.StatusSuccess {
				t.Errorf("%+v", past)
			}
		}
		if db.Name() == "mysql" {
			// It may be in a group of its own, which is then still being tried.
			dbtest.Eventually(t, "the one that waits is known", func() bool { return log.lines("outcome waits", keyed) > 0 })
		}
		held.Rollback()
		if past := dbtest.Ended(t, db, keyed); past.Status != outbox.StatusSuccess {
			t.Errorf("the one with the key: %+v", past)
		}
	})
}

// A transaction that would cancel or move a task that has ended, as of an order that is paid late,
// keeps nobody from creating others, at any level.
func TestGoneTaskLocksNobody(t *testing.T) {
	t.Parallel()
	eachDBWithRowLocks(t, func(t *testing.T, db *gorm.DB) {
		p := dbtest.Install(t, db, quick(), func(p *outbox.Plugin) {
			p.Handle("f", func(context.Context) error { return nil })
		})
		dbtest.Start(t, p)
		done := dbtest.Create(t, db, "f", nil, outbox.Key("key"))
		dbtest.Ended(t, db, done.ID)
		if db.Name() == "mysql" {
			// Until the server has purged the row that is gone, it is that and not the gap that is
			// locked. Others' transactions may keep it from purging.
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			_ = db.WithContext(ctx).Exec("SET GLOBAL innodb_max_purge_lag_wait = 0").Error
		}
		for name, change := range map[string]func(*gorm.DB) error{
			"cancel":     func(tx *gorm.DB) error { return outbox.Cancel(tx, done.ID) },
			"reschedule": func(tx *gorm.DB) error { return outbox.Reschedule(tx, done.ID, time.Now()) },
			"cancel key": func(tx *gorm.DB) error {
				_, err := outbox.CancelKey(tx, "key")
				return errors.Join(err, outbox.ErrNotFound)
			},
		} {
			t.Run(name, func(t *testing.T) {
				tx := db.Begin()
				defer tx.Rollback()
				if err := change(tx); !errors.Is(err, outbox.ErrNotFound) {
					t.Fatal(err)
				}
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				defer cancel()
				for range 3 {
					if _, err := outbox.Create(db.WithContext(ctx), "f", nil); err != nil {
						t.Errorf("Create beside it: %v", err)
					}
				}
				if err := tx.Commit().Error; err != nil {
					t.Error(err)
				}
			})
		}
	})
}

// What has no transaction of the caller's that would be undone with it is tried again after a
// deadlock.
func TestDeadlockOutsideOfATransactionIsRunAgain(t *testing.T) {
	t.Parallel()
	eachDBWithRowLocks(t, func(t *testing.T, db *gorm.DB) {
		dbtest.Install(t, db, quick(), func(p *outbox.Plugin) {
			p.Handle("f", func(context.Context) error { return nil })
		})
		for tries := 1; !batchIsUndone(t, db); tries++ {
			if tries == 10 {
				t.Fatal("the server has undone the other transaction each time")
			}
			mustRun(t, db, "DELETE FROM outbox_tasks")
		}
		if n := inState(t, db, outbox.StatePending); n != 2 {
			t.Errorf("%d tasks", n)
		}
	})
}

// batchIsUndone makes a deadlock between a batch without a transaction and a transaction. It
// reports whether the server has undone the batch: PostgreSQL undoes who notices first, which after
// a second of waiting looks once, and may have been too early.
func batchIsUndone(t *testing.T, db *gorm.DB) bool {
	t.Helper()
	tx := db.Begin()
	defer tx.Rollback()
	for range 50 { // MySQL undoes who has written less
		dbtest.Create(t, tx, "f", nil)
	}
	dbtest.Create(t, tx, "f", nil, outbox.Key("b"))
	answer := make(chan error, 1)
	go func() {
		_, err := outbox.CreateBatch(db, outbox.NewTask{Func: "f", Options: []outbox.CreateOption{outbox.Key("a")}},
			outbox.NewTask{Func: "f", Options: []outbox.CreateOption{outbox.Key("b")}})
		answer <- err
	}()
	dbtest.Eventually(t, "the batch waits for the key", func() bool {
		var n int64
		query := "SELECT count(*) FROM information_schema.processlist WHERE db = DATABASE() AND info LIKE 'INSERT INTO%' AND command <> 'Sleep'"
		if db.Name() == "postgres" {
			query = waiting["postgres"]
		}
		if err := db.Raw(query).Scan(&n).Error; err != nil {
			t.Fatal(err)
		}
		return n > 0
	})
	_, err := outbox.Create(tx, "f", nil, outbox.Key("a"))
	if err != nil && dialect.Classify(err) != dialect.Retry {
		t.Fatal(err)
	}
	tx.Rollback()
	if err := dbtest.Receive(t, answer); err != nil {
		t.Errorf("CreateBatch: %v", err)
	}
	return err == nil
}
