package scenarios_test

import (
	"context"
	"database/sql"
	"testing"
	"time"

	"gorm.io/driver/mysql"
	"gorm.io/driver/postgres"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

// The pool keeps connections whose sessions take no writes, as those to a primary that has become a
// standby, or cannot be read. Tasks end all the same, and no attempt is spent on them.
func TestSessionsThatDoNotServeAreLeft(t *testing.T) {
	mysqlDSN := func(dsn func(testing.TB) string) func(t testing.TB) gorm.Dialector {
		return func(t testing.TB) gorm.Dialector { return mysql.Open(dsn(t)) }
	}
	for name, c := range map[string]struct {
		open  func(t testing.TB) gorm.Dialector
		spoil string
	}{
		"read-only on postgres": {func(t testing.TB) gorm.Dialector { return postgres.Open(testdb.PostgresDSN(t)) },
			"SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"},
		"read-only on mariadb": {mysqlDSN(testdb.MariaDBDSN), "SET SESSION TRANSACTION READ ONLY"},
		"read-only on mysql":   {mysqlDSN(testdb.MySQLDSN), "SET SESSION TRANSACTION READ ONLY"},
		"a style of dates on postgres": {func(t testing.TB) gorm.Dialector {
			return postgres.Open(testdb.PostgresDSN(t) + "&default_query_exec_mode=simple_protocol")
		}, "SET datestyle TO German"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			open := c.open(t)
			db, err := gorm.Open(open, &gorm.Config{Logger: logger.Discard})
			if err != nil {
				t.Fatal(err)
			}
			pool, err := db.DB()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = pool.Close() })
			const connections, tasks = 20, 20
			pool.SetMaxOpenConns(connections)
			pool.SetMaxIdleConns(connections)
			p := dbtest.Install(t, db, outbox.Options{Concurrency: 10}, func(p *outbox.Plugin) {
				p.Handle("pinned.Plain", func(context.Context) error { return nil })
				p.Handle("pinned.Tx", func(ctx context.Context, tx *gorm.DB) error {
					task, _ := outbox.TaskFrom(ctx)
					return tx.Exec("INSERT INTO pinned (task) VALUES (?)", task.ID).Error
				})
			})
			if err := db.Exec("CREATE TABLE pinned (task varchar(36) NOT NULL PRIMARY KEY)").Error; err != nil {
				t.Fatal(err)
			}
			dbtest.Start(t, p)
			own, err := pool.Conn(t.Context()) // which stays fit
			if err != nil {
				t.Fatal(err)
			}
			defer own.Close()
			var spoiled []*sql.Conn
			for range connections / 2 {
				conn, err := pool.Conn(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if _, err := conn.ExecContext(t.Context(), c.spoil); err != nil {
					t.Fatal(err)
				}
				spoiled = append(spoiled, conn)
			}
			for _, conn := range spoiled {
				if err := conn.Close(); err != nil {
					t.Fatal(err)
				}
			}
			begun := time.Now()
			producer := db.Session(&gorm.Session{NewDB: true})
			producer.Statement.ConnPool = own
			for range tasks {
				dbtest.Create(t, producer, "pinned.Plain", nil)
				dbtest.Create(t, producer, "pinned.Tx", nil)
			}
			n := func(query string) (n int) {
				if err := own.QueryRowContext(t.Context(), query).Scan(&n); err != nil {
					t.Fatal(err)
				}
				return n
			}
			dbtest.Eventually(t, "all tasks end", func() bool { return n("SELECT count(*) FROM outbox_history") == 2*tasks })
			t.Logf("after %v", time.Since(begun))
			if ok := n("SELECT count(*) FROM outbox_history WHERE status = 'success' AND attempt - uncounted = 1"); ok != 2*tasks {
				t.Errorf("of %d tasks %d succeeded at once", 2*tasks, ok)
			}
		})
	}
}
