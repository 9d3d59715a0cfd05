package outbox_test

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
)

// elsewhere makes tables like the library's that a session comes to see in their place, as a
// tenant's schema may hold. It returns the statement that leads a session there, and the prefix of
// the tables.
func elsewhere(t *testing.T, db *gorm.DB) (lead []string, prefix string) {
	t.Helper()
	here := ""
	if err := db.Raw(map[string]string{"postgres": "SELECT current_schema()", "mysql": "SELECT DATABASE()", "sqlite": "SELECT 'main'"}[db.Name()]).
		Scan(&here).Error; err != nil {
		t.Fatal(err)
	}
	there := here + "_tenant"
	var make, like string
	switch db.Name() {
	case "postgres":
		make, like, lead = "CREATE SCHEMA "+there, "(LIKE %s INCLUDING ALL)", []string{"SET search_path TO " + there}
	case "mysql":
		make, like, lead = "CREATE DATABASE "+there, "LIKE %s", []string{"USE " + there}
	default:
		// A temporary table is its connection's own, so it is made there.
		there = "temp"
		like = "AS SELECT * FROM %s WHERE false"
	}
	for _, table := range []string{"outbox_tasks", "outbox_history", "outbox_processes", "outbox_schema"} {
		lead = append(lead, "CREATE TABLE IF NOT EXISTS "+there+"."+table+" "+strings.Replace(like, "%s", here+"."+table, 1))
	}
	if make != "" {
		mustRun(t, db, append([]string{make}, lead[1:]...)...)
		lead = lead[:1]
		t.Cleanup(func() {
			mustRun(t, db, "DROP SCHEMA "+there+map[string]string{"postgres": " CASCADE"}[db.Name()])
		})
	}
	return lead, there + "."
}

// A tenant's search_path, a USE, a temporary table: whatever a session has set, tasks land where
// the dispatcher looks, and a run finishes the task that it was claimed from.
func TestSessionSeesOtherTables(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		ranTx := make(chan string, 10)
		var lead []string
		p, ran := shop(t, db, outbox.Options{})
		p.Handle("a.b", func(ctx context.Context, tx *gorm.DB) error {
			mustRun(t, tx, lead...)
			task, _ := outbox.TaskFrom(ctx)
			ranTx <- task.ID
			return useEverything(t, tx)
		})
		var prefix string
		lead, prefix = elsewhere(t, db)
		nothingThere := func(t *testing.T, tx *gorm.DB) {
			t.Helper()
			for _, table := range []string{"outbox_tasks", "outbox_history", "outbox_processes"} {
				var n int64
				if err := tx.Raw("SELECT count(*) FROM " + prefix + table).Scan(&n).Error; err != nil || n > 0 {
					t.Errorf("%s holds %d rows, %v", prefix+table, n, err)
				}
			}
		}
		t.Run("in the caller's transaction", func(t *testing.T) {
			var id, txID string
			if err := db.Transaction(func(tx *gorm.DB) error {
				mustRun(t, tx, lead...)
				if err := useEverything(t, tx); err != nil {
					return err
				}
				id, txID = dbtest.Create(t, tx, cancelOrder, nil).ID, dbtest.Create(t, tx, "a.b", nil).ID
				nothingThere(t, tx)
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			if n, err := p.RunDue(t.Context()); n != 2 || err != nil {
				t.Fatalf("%d ran, %v", n, err)
			}
			if got := dbtest.Receive(t, ran); got != id {
				t.Errorf("task %s ran", got)
			}
			if got := dbtest.Receive(t, ranTx); got != txID {
				t.Errorf("task %s ran", got)
			}
			for _, id := range []string{id, txID} {
				if past := dbtest.Ended(t, db, id); past.Status != outbox.StatusSuccess {
					t.Errorf("ended as %s: %s", past.Status, *past.Error)
				}
			}
		})
		t.Run("left behind on the pool's only connection", func(t *testing.T) {
			pool, err := db.DB()
			if err != nil {
				t.Fatal(err)
			}
			pool.SetMaxOpenConns(1)
			defer pool.SetMaxOpenConns(20)
			mustRun(t, db, lead...)
			id := dbtest.Create(t, db, cancelOrder, nil).ID
			if n, err := p.RunDue(t.Context()); n != 1 || err != nil {
				t.Fatalf("%d ran, %v", n, err)
			}
			dbtest.Receive(t, ran)
			if past := dbtest.Ended(t, db, id); past.Status != outbox.StatusSuccess {
				t.Errorf("ended as %+v", past)
			}
			stop := dbtest.Start(t, p)
			dbtest.Create(t, db, cancelOrder, nil)
			dbtest.Receive(t, ran)
			stop()
			if err := p.Migrate(t.Context()); err != nil {
				t.Error(err)
			}
			nothingThere(t, db)
		})
	})
}

// The tables need not be in the first schema of the search_path.
func TestTablesInALaterSchema(t *testing.T) {
	for _, d := range dbtest.Databases {
		if d.Name != "postgres" {
			continue
		}
		db := d.Open(t)
		shop(t, db, outbox.Options{})
		dsn := d.DSN(t)
		var here, empty string
		if err := db.Raw("SELECT current_schema()").Scan(&here).Error; err != nil {
			t.Fatal(err)
		}
		other := openConfig(t, d.Name, dsn, &gorm.Config{})
		if err := other.Raw("SELECT current_schema()").Scan(&empty).Error; err != nil {
			t.Fatal(err)
		}
		db = openConfig(t, d.Name, strings.Replace(dsn, empty, empty+"%2C"+here, 1), &gorm.Config{})
		p, ran := shop(t, db, outbox.Options{})
		dbtest.Create(t, db, cancelOrder, nil)
		if n, err := p.RunDue(t.Context()); n != 1 || err != nil {
			t.Errorf("%d ran, %v", n, err)
		}
		dbtest.Receive(t, ran)
		if other.Migrator().HasTable("outbox_tasks") {
			t.Error("Migrate made a second set of tables")
		}
	}
}

// A database that is away at db.Use is asked for the schema when it is there; never by a caller who
// holds the pool's last connection.
func TestUseWhileTheDatabaseIsAway(t *testing.T) {
	for _, d := range dbtest.Databases {
		if d.Name == "sqlite" {
			continue // has nothing to ask
		}
		t.Run(d.Name, func(t *testing.T) {
			db := d.Open(t)
			shop(t, db, outbox.Options{})
			lead, prefix := elsewhere(t, db)
			pool, err := db.DB()
			if err != nil {
				t.Fatal(err)
			}
			late := func(t *testing.T) (*gorm.DB, *outbox.Plugin) {
				t.Helper()
				p := outbox.New(outbox.Options{ProducerOnly: true, Logger: slog.New(slog.DiscardHandler)})
				config := &gorm.Config{Logger: logger.Discard}
				other, err := gorm.Open(dialectors[db.Name()](d.DSN(t)), config)
				if err != nil {
					t.Fatal(err)
				}
				closed, err := other.DB()
				if err != nil {
					t.Fatal(err)
				}
				if err := closed.Close(); err != nil {
					t.Fatal(err)
				}
				if err := other.Use(p); err != nil {
					t.Fatal(err)
				}
				p.Rebind(pool)
				other.ConnPool = pool
				other.Statement.ConnPool = pool
				return other, p
			}
			count := func() (n int64) {
				if err := db.Raw("SELECT count(*) FROM " + prefix + "outbox_tasks").Scan(&n).Error; err != nil {
					t.Fatal(err)
				}
				return n
			}
			t.Run("a caller's connection while others are free", func(t *testing.T) {
				other, _ := late(t)
				if err := other.Transaction(func(tx *gorm.DB) error {
					mustRun(t, tx, lead...)
					_, err := outbox.Create(tx, "a.b", nil)
					return err
				}); err != nil || count() != 0 {
					t.Errorf("%v; %d tasks elsewhere", err, count())
				}
			})
			t.Run("the last connection", func(t *testing.T) {
				pool.SetMaxOpenConns(1)
				defer pool.SetMaxOpenConns(20)
				other, _ := late(t)
				begun := time.Now()
				if err := other.Transaction(func(tx *gorm.DB) error {
					_, err := outbox.Create(tx, "a.b", nil)
					return err
				}); err != nil || time.Since(begun) > time.Second {
					t.Errorf("%v after %v", err, time.Since(begun))
				}
			})
		})
	}
}
