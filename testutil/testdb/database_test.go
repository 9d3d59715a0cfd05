package testdb_test

import (
	"context"
	"database/sql"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"gorm.io/driver/postgres"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-outbox/outbox/testutil/testdb"
)

func TestSQLite(t *testing.T) {
	db := testdb.SQLite(t)

	t.Run("has a write-ahead log and a busy timeout", func(t *testing.T) {
		if got := scalar[string](t, db, "PRAGMA journal_mode"); got != "wal" {
			t.Errorf("journal_mode = %s, want wal", got)
		}
		if got := scalar[int](t, db, "PRAGMA busy_timeout"); got != 5000 {
			t.Errorf("busy_timeout = %d, want 5000", got)
		}
	})

	t.Run("shares nothing with the next one", func(t *testing.T) {
		mustExec(t, db, "CREATE TABLE only_here (id int)")
		if testdb.SQLite(t).Migrator().HasTable("only_here") {
			t.Error("the second database has the first one's table")
		}
	})
}

func TestSQLiteDSN(t *testing.T) {
	tmp := tempDir(t, "odd ?#%41 name*")
	t.Setenv("TMPDIR", tmp)
	dsn := testdb.SQLiteDSN(t)
	first, second := openDB(t, sqlite.Open(dsn)), openDB(t, sqlite.Open(dsn))
	mustExec(t, first, "CREATE TABLE shared (id int)")

	t.Run("names a file whose path may hold anything", func(t *testing.T) {
		file := scalar[string](t, first, "SELECT file FROM pragma_database_list")
		if !strings.HasPrefix(file, tmp+"/") {
			t.Errorf("the database is %s, want it in %s", file, tmp)
		}
	})

	t.Run("names one database for every process", func(t *testing.T) {
		if !second.Migrator().HasTable("shared") {
			t.Error("the second connection does not see the first one's table")
		}
	})

	t.Run("locks when a transaction begins", func(t *testing.T) {
		err := first.Transaction(func(*gorm.DB) error {
			return second.Connection(func(conn *gorm.DB) error {
				mustExec(t, conn, "PRAGMA busy_timeout = 0")
				return conn.Exec("INSERT INTO shared VALUES (1)").Error
			})
		})
		if err == nil || !strings.Contains(err.Error(), "locked") {
			t.Errorf("write beside a transaction that has written nothing: %v, want it locked out", err)
		}
	})
}

func TestPostgres(t *testing.T) {
	t.Run("has its schema on every connection", func(t *testing.T) {
		pool := pool(t, testdb.Postgres(t))
		want := ""
		for range 3 { // all held, so they are three
			conn, err := pool.Conn(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			var got string
			if err := conn.QueryRowContext(t.Context(), "SELECT current_schema()").Scan(&got); err != nil {
				t.Fatal(err)
			}
			if want == "" {
				want = got
			}
			if !strings.HasPrefix(got, "outbox_test_") || got != want {
				t.Errorf("current_schema() = %s, want %s", got, want)
			}
		}
	})

	t.Run("shares nothing with the next one", func(t *testing.T) {
		mustExec(t, testdb.Postgres(t), "CREATE TABLE only_here (id int)")
		if testdb.Postgres(t).Migrator().HasTable("only_here") {
			t.Error("the second schema has the first one's table")
		}
	})

	t.Run("is gone after the test", func(t *testing.T) {
		schema := ""
		t.Run("the test", func(t *testing.T) {
			db := testdb.Postgres(t)
			mustExec(t, db, "CREATE TABLE orders (id int)")
			schema = scalar[string](t, db, "SELECT current_schema()")
		})
		count := scalar[int](t, testdb.Postgres(t), "SELECT count(*) FROM pg_namespace WHERE nspname = ?", schema)
		if schema == "" || count != 0 {
			t.Errorf("schema %q is still there", schema)
		}
	})
}

func TestPostgresDSN(t *testing.T) {
	dsn := testdb.PostgresDSN(t)
	first, second := openDB(t, postgres.Open(dsn)), openDB(t, postgres.Open(dsn))
	mustExec(t, first, "CREATE TABLE shared (id int)")

	t.Run("names one schema for every process", func(t *testing.T) {
		if !second.Migrator().HasTable("shared") {
			t.Error("the second connection does not see the first one's table")
		}
	})
}

// scalar reads one value.
func scalar[T any](t *testing.T, db *gorm.DB, query string, args ...any) T {
	t.Helper()
	var v T
	if err := db.Raw(query, args...).Scan(&v).Error; err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return v
}

func mustExec(t *testing.T, db *gorm.DB, statement string) {
	t.Helper()
	if err := db.Exec(statement).Error; err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

// openDB opens a database as an application would.
func openDB(t *testing.T, dialector gorm.Dialector) *gorm.DB {
	t.Helper()
	db, err := gorm.Open(dialector, &gorm.Config{Logger: logger.Discard})
	if err != nil {
		t.Fatal(err)
	}
	p := pool(t, db)
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

func pool(t *testing.T, db *gorm.DB) *sql.DB {
	t.Helper()
	p, err := db.DB()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// tempDir is for what t.TempDir does not suit: it chooses the name.
func tempDir(t *testing.T, pattern string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", pattern)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// eventually waits for a condition that other processes bring about.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-ctx.Done():
			t.Fatalf("not within 40s: %s", what)
		case <-tick.C:
		}
	}
}

// without drops a variable from an environment.
func without(environ []string, name string) []string {
	return slices.DeleteFunc(environ, func(v string) bool { return strings.HasPrefix(v, name+"=") })
}
