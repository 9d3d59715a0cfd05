package outbox_test

import (
	"context"
	"database/sql"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

type counter struct {
	ID int `gorm:"primaryKey;autoIncrement:false"`
	N  int
}

// serializable opens a fresh PostgreSQL database whose transactions are serializable unless they
// say otherwise.
func serializable(t *testing.T) *gorm.DB {
	t.Helper()
	dsn := testdb.PostgresDSN(t)
	if !strings.Contains(dsn, "://") {
		t.Skip("the DSN has another form")
	}
	db := openConfig(t, "postgres", dsn+"&default_transaction_isolation=serializable", &gorm.Config{})
	return db
}

func counters(t *testing.T, db *gorm.DB) {
	t.Helper()
	if err := db.AutoMigrate(&counter{}); err != nil {
		t.Fatal(err)
	}
	if err := db.Create([]counter{{1, 0}, {2, 0}}).Error; err != nil {
		t.Fatal(err)
	}
}

// counted is what a counter says.
func counted(t *testing.T, db *gorm.DB, id int) int {
	t.Helper()
	var c counter
	if err := db.Where("id = ?", id).Take(&c).Error; err != nil {
		t.Fatal(err)
	}
	return c.N
}

// increment reads, then writes what it read and one more: only under SERIALIZABLE is nothing lost.
func increment(tx *gorm.DB, id int) error {
	var c counter
	if err := tx.Where("id = ?", id).Take(&c).Error; err != nil {
		return err
	}
	return tx.Model(&counter{}).Where("id = ?", id).Update("n", c.N+1).Error
}

func TestSerializationFailureIsRunAgain(t *testing.T) {
	db := serializable(t)
	counters(t, db)
	var calls atomic.Int64
	both := make(chan struct{}, 2) // the first two meet after their reads, so that one must fail
	p := dbtest.Install(t, db, quick(), func(p *outbox.Plugin) {
		p.Handle("meet", func(_ context.Context, tx *gorm.DB) error {
			var c counter
			if err := tx.Where("id = 1").Take(&c).Error; err != nil {
				return err
			}
			if calls.Add(1) <= 2 {
				both <- struct{}{}
				for len(both) < 2 {
					held(1)
				}
			}
			return tx.Model(&counter{}).Where("id = 1").Update("n", c.N+1).Error
		})
		p.Handle("increment", func(_ context.Context, tx *gorm.DB) error { return increment(tx, 2) })
	})
	dbtest.Start(t, p)
	check := func(t *testing.T, id, tasks int, path string) {
		var ids []string
		for range tasks {
			ids = append(ids, dbtest.Create(t, db, path, nil).ID)
		}
		for _, id := range ids {
			if past := dbtest.Ended(t, db, id); past.Status != outbox.StatusSuccess || past.Attempt != 1 {
				t.Errorf("%s, %s, attempt %d, %s", past.Status, past.Reason, past.Attempt, text(past.Error))
			}
		}
		if n := counted(t, db, id); n != tasks {
			t.Errorf("counted %d, want %d", n, tasks)
		}
	}
	t.Run("of two", func(t *testing.T) {
		check(t, 1, 2, "meet")
		if n := calls.Load(); n < 3 {
			t.Errorf("%d calls: nothing failed", n)
		}
	})
	t.Run("of ten at a time", func(t *testing.T) { check(t, 2, 40, "increment") })
}

func TestIsolation(t *testing.T) {
	t.Run("postgres", func(t *testing.T) { isolation(t, testdb.Postgres(t), "SHOW transaction_isolation") })
	for name, open := range mysqlServers {
		t.Run(name, func(t *testing.T) {
			// The variable is the session's, and a transaction is known with its first row.
			isolation(t, open(t), `SELECT LOWER(trx_isolation_level) FROM outbox_tasks, information_schema.innodb_trx
WHERE trx_mysql_thread_id = CONNECTION_ID() LIMIT 1`)
		})
	}
}

func isolation(t *testing.T, db *gorm.DB, query string) {
	p := dbtest.Install(t, db, quick(), func(p *outbox.Plugin) {
		p.Handle("serializable", func(ctx context.Context, tx *gorm.DB) (level string, err error) {
			if err := tx.Exec("UPDATE outbox_tasks SET priority = priority WHERE id = ''").Error; err != nil {
				return "", err
			}
			for level == "" && err == nil { // MySQL may answer as it was a tenth of a second ago
				err = tx.Raw(query).Scan(&level).Error
			}
			return level, err
		}, outbox.Isolation(sql.LevelSerializable))
		p.Handle("by.itself", func(_ context.Context, tx *gorm.DB) error {
			return tx.Exec("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE").Error
		})
	})
	dbtest.Start(t, p)
	if past := dbtest.Ended(t, db, dbtest.Create(t, db, "serializable", nil).ID); past.Result.String() != `"serializable"` {
		t.Errorf("%s, %s: the level is %s", past.Status, text(past.Error), past.Result)
	}
	if past := dbtest.Ended(t, db, dbtest.Create(t, db, "by.itself", nil).ID); past.Status != outbox.StatusError {
		t.Errorf("a handler that sets the level by itself gives %s", past.Status)
	}
}

func TestDeadlockIsRunAgain(t *testing.T) {
	t.Run("postgres", func(t *testing.T) { deadlock(t, testdb.Postgres(t)) })
	for name, open := range mysqlServers {
		t.Run(name, func(t *testing.T) { deadlock(t, open(t)) })
	}
}

func deadlock(t *testing.T, db *gorm.DB) {
	counters(t, db)
	var calls atomic.Int64
	both := make(chan struct{}, 2)
	p := dbtest.Install(t, db, quick(), func(p *outbox.Plugin) {
		p.Handle("lock", func(_ context.Context, tx *gorm.DB, a struct {
			First  int `json:"first"`
			Second int `json:"second"`
		}) error {
			add := func(id int) error {
				return tx.Model(&counter{}).Where("id = ?", id).Update("n", gorm.Expr("n + 1")).Error
			}
			if err := add(a.First); err != nil {
				return err
			}
			if calls.Add(1) <= 2 {
				both <- struct{}{}
				for len(both) < 2 {
					held(1)
				}
			}
			return add(a.Second)
		})
	})
	dbtest.Start(t, p)
	a := dbtest.Create(t, db, "lock", outbox.Args{"first": 1, "second": 2})
	b := dbtest.Create(t, db, "lock", outbox.Args{"first": 2, "second": 1})
	for _, task := range []*outbox.TaskModel{a, b} {
		if past := dbtest.Ended(t, db, task.ID); past.Status != outbox.StatusSuccess || past.Attempt != 1 {
			t.Errorf("%s, %s, attempt %d, %s", past.Status, past.Reason, past.Attempt, text(past.Error))
		}
	}
	if n, m := counted(t, db, 1), counted(t, db, 2); n != 2 || m != 2 || calls.Load() < 3 {
		t.Errorf("counted %d and %d in %d calls", n, m, calls.Load())
	}
}

func TestTransactionalAndOrdinaryTasksDoNotStarveEachOther(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		const each = 100
		order := make(chan bool, 2*each)
		opts := hourly()
		opts.Concurrency = 2
		p := dbtest.Install(t, db, opts, func(p *outbox.Plugin) {
			p.Handle("plain", func(context.Context) error { order <- false; return nil })
			p.Handle("plain.tx", func(context.Context, *gorm.DB) error { order <- true; return nil })
		})
		for range each {
			dbtest.Create(t, db, "plain", nil)
		}
		for range each {
			dbtest.Create(t, db, "plain.tx", nil)
		}
		dbtest.Start(t, p)
		dbtest.Eventually(t, "all have run", func() bool { return dbtest.Count(t, db, &outbox.TaskModel{}) == 0 })
		if db.Dialector.Name() != "sqlite" {
			return // there they are claimed together, in the order of their start times
		}
		var ran [2]int
		for range each {
			if <-order {
				ran[1]++
			} else {
				ran[0]++
			}
		}
		if ran[0] < each/10 || ran[1] < each/10 {
			t.Errorf("of the first %d runs %d were ordinary and %d transactional", each, ran[0], ran[1])
		}
	})
}

// The claims of other processes lock rows that they only look at, for a moment.
func TestRowLockedForAMomentIsNotLeft(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		if db.Name() != "mysql" {
			t.Skip("claims lock no row that they do not take")
		}
		opts := quick()
		opts.Scan = "@every 1h"
		var ran <-chan string
		p := dbtest.Install(t, db, opts, func(p *outbox.Plugin) { ran = notes(p, "note") })
		// locked creates a task whose row is locked when its creation commits, and until release.
		locked := func() (id string, release func()) {
			task := dbtest.Create(t, db, "note", nil, outbox.StartAfter(100*time.Millisecond))
			tx := db.Begin()
			if err := tx.Exec("SELECT id FROM outbox_tasks WHERE id = ? FOR UPDATE", task.ID).Error; err != nil {
				t.Fatal(err)
			}
			dbtest.Eventually(t, "it is due", func() bool {
				var due int64
				err := db.Raw("SELECT count(*) FROM outbox_tasks WHERE id = ? AND run_at <= UTC_TIMESTAMP(6)", task.ID).Scan(&due).Error
				return err == nil && due == 1
			})
			return task.ID, func() { tx.Rollback() }
		}
		_, release := locked()
		time.AfterFunc(20*time.Millisecond, release)
		if n, err := p.RunDue(t.Context()); err != nil || n != 1 {
			t.Errorf("RunDue ran %d, %v; want 1", n, err)
		}
		dbtest.Receive(t, ran)
		dbtest.Start(t, p)
		dbtest.Eventually(t, "it has begun", func() bool { return dbtest.Count(t, db, &outbox.ProcessModel{}) == 1 })
		id, release := locked()
		time.AfterFunc(10*time.Millisecond, release)
		if got := dbtest.Receive(t, ran); got != id {
			t.Errorf("%s ran", got)
		}
	})
}
