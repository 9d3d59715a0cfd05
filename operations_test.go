package outbox_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

// What docs/operations.md says and no other test tries.

// The name of the isolation level's variable differs: MySQL has transaction_isolation, MariaDB
// before 11.1 tx_isolation.
func TestIsolationInTheDSN(t *testing.T) {
	for server, open := range map[string]func(testing.TB) *gorm.DB{"mysql": testdb.MySQL, "mariadb": testdb.MariaDB} {
		t.Run(server, func(t *testing.T) {
			db := open(t)
			var version string
			if err := db.Raw("SELECT version()").Scan(&version).Error; err != nil {
				t.Fatal(err)
			}
			name, other := "transaction_isolation", "tx_isolation"
			if strings.Contains(version, "MariaDB") {
				name, other = other, name
			}
			set := func(name string) (level string, err error) {
				silent := db.Session(&gorm.Session{Logger: logger.Discard})
				err = silent.Connection(func(tx *gorm.DB) error {
					if err := tx.Exec("SET " + name + " = 'READ-COMMITTED'").Error; err != nil { // what the driver does with the DSN's
						return err
					}
					return tx.Raw("SELECT @@" + name).Scan(&level).Error
				})
				return level, err
			}
			if level, err := set(name); err != nil || level != "READ-COMMITTED" {
				t.Errorf("%s: %s is %q, %v", version, name, level, err)
			}
			if _, err := set(other); !strings.HasPrefix(version, "11.") && (err == nil || !strings.Contains(err.Error(), "1193")) {
				t.Errorf("%s: %s gives %v", version, other, err)
			}
		})
	}
}

// Two dispatchers in one process, each with a handle and a plugin of its own, share the tasks of
// their database.
func TestTwoDispatchersInOneProcess(t *testing.T) {
	for _, d := range dbtest.Databases {
		t.Run(d.Name, func(t *testing.T) {
			dsn := d.DSN(t)
			var mu sync.Mutex
			runs := map[string]int{}
			work := func(ctx context.Context, _ outbox.Args) error {
				task, _ := outbox.TaskFrom(ctx)
				mu.Lock()
				defer mu.Unlock()
				runs[task.ID]++
				return nil
			}
			var first *gorm.DB
			for range 2 {
				db := openConfig(t, d.Dialect, dsn, &gorm.Config{})
				if first == nil {
					first = db
				}
				dbtest.Start(t, dbtest.Install(t, db, outbox.Options{}, func(p *outbox.Plugin) { p.Handle("work", work) }))
			}
			if err := first.Use(outbox.New(outbox.Options{})); !errors.Is(err, gorm.ErrRegistered) {
				t.Errorf("a second plugin on one handle: %v", err)
			}
			var ids []string
			for range 20 {
				ids = append(ids, dbtest.Create(t, first, "work", nil).ID)
			}
			for _, id := range ids {
				h := dbtest.Ended(t, first, id)
				mu.Lock()
				n := runs[id]
				mu.Unlock()
				if h.Status != outbox.StatusSuccess || n != 1 {
					t.Errorf("ended as %s after %d runs", h.Status, n)
				}
			}
		})
	}
}

// A foreign key of the application's on the task table: the end of a task deletes the row that is
// referenced.
func TestForeignKeyOnTheTaskTable(t *testing.T) {
	for action, want := range map[string]struct {
		ends              bool
		rows, referencing int64
	}{
		"RESTRICT": {false, 1, 1},
		"CASCADE":  {true, 0, 0},
		"SET NULL": {true, 1, 0},
	} {
		t.Run(action, func(t *testing.T) {
			dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
				var logged strings.Builder
				p := dbtest.Install(t, db, outbox.Options{Logger: slog.New(slog.NewTextHandler(&logged, nil))}, func(p *outbox.Plugin) {
					p.Handle("work", func(context.Context, outbox.Args) error { return nil })
				})
				idType := "text"
				switch db.Name() {
				case "sqlite": // asks for it on each connection
					pool, err := db.DB()
					if err != nil {
						t.Fatal(err)
					}
					pool.SetMaxOpenConns(1)
					if err := db.Exec("PRAGMA foreign_keys = ON").Error; err != nil {
						t.Fatal(err)
					}
				case "mysql": // wants the very type
					if err := db.Raw("SELECT concat(column_type, ' COLLATE ', collation_name) FROM information_schema.columns" +
						" WHERE table_schema = database() AND table_name = 'outbox_tasks' AND column_name = 'id'").Scan(&idType).Error; err != nil {
						t.Fatal(err)
					}
				}
				task := dbtest.Create(t, db, "work", nil)
				for _, statement := range []string{
					"CREATE TABLE watchers (name varchar(20) PRIMARY KEY, task_id " + idType + " NULL, FOREIGN KEY (task_id) REFERENCES outbox_tasks (id) ON DELETE " + action + ")",
					"INSERT INTO watchers VALUES ('alice', '" + task.ID + "')",
				} {
					if err := db.Exec(statement).Error; err != nil {
						t.Fatal(err)
					}
				}
				if _, err := p.RunDue(t.Context()); err != nil {
					t.Fatal(err)
				}
				live, past, err := outbox.Lookup(db, task.ID)
				if err != nil || (past != nil) != want.ends || (live == nil) != want.ends {
					t.Errorf("waiting %+v, ended %+v, %v", live, past, err)
				}
				if refused := strings.Contains(logged.String(), "level=ERROR"); refused == want.ends {
					t.Errorf("logged:\n%s", logged.String())
				}
				var rows, referencing int64
				err = errors.Join(db.Table("watchers").Count(&rows).Error, db.Table("watchers").Where("task_id IS NOT NULL").Count(&referencing).Error)
				if err != nil || rows != want.rows || referencing != want.referencing {
					t.Errorf("%d rows, %d of them with a task, %v", rows, referencing, err)
				}
			})
		})
	}
}
