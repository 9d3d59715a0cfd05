package scenarios_test

import (
	"database/sql"
	"errors"
	"fmt"
	"testing"

	"github.com/gorm-outbox/outbox/testutil/testdb"
)

// server is one that a test has for itself.
type server struct {
	dsn         string
	stop, start func()
	terminate   func(*testing.T, *sql.Conn) int // all sessions but this one
}

func eachServer(t *testing.T, test func(t *testing.T, server server)) {
	t.Helper()
	t.Run("postgres", func(t *testing.T) {
		c := testdb.StartPostgres(t)
		test(t, server{c.DSN(), func() { c.Stop("fast") }, c.Start, func(t *testing.T, own *sql.Conn) (n int) {
			if err := own.QueryRowContext(t.Context(), `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()`).Scan(&n); err != nil {
				t.Fatal(err)
			}
			return n
		}})
	})
	mysql := func(t *testing.T, s *testdb.MySQLServer) {
		test(t, server{s.DSN(), s.Crash, s.Start, func(t *testing.T, own *sql.Conn) (n int) {
			rows, err := own.QueryContext(t.Context(), "SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()")
			if err != nil {
				t.Fatal(err)
			}
			defer rows.Close()
			var ids []int64
			for rows.Next() {
				var id int64
				if err := rows.Scan(&id); err != nil {
					t.Fatal(err)
				}
				ids = append(ids, id)
			}
			if err := errors.Join(rows.Err(), rows.Close()); err != nil {
				t.Fatal(err)
			}
			for _, id := range ids {
				if _, err := own.ExecContext(t.Context(), fmt.Sprint("KILL ", id)); err == nil { // else it has ended by itself
					n++
				}
			}
			return n
		}})
	}
	const outlives = "--innodb-flush-log-at-trx-commit=2" // what was committed outlives the crash
	t.Run("mariadb", func(t *testing.T) { mysql(t, testdb.StartMariaDB(t, outlives)) })
	t.Run("mysql", func(t *testing.T) { mysql(t, testdb.StartMySQL(t, outlives)) })
}
