// Package testdb gives tests databases that exist as long as the test.
//
// Each call returns a database that is used by the caller only, so tests may run in parallel. The
// functions do not install the plugin: call db.Use with the options under test.
//
// The package links the drivers of GORM's own dialects; gorm.io/driver/sqlite links
// github.com/mattn/go-sqlite3. database/sql accepts a driver's name only once. So a program that
// also links another package that registers "sqlite3" panics when it starts. This package cannot
// prevent that. Such an application opens its own databases; package testutil links no driver and
// works with any.
package testdb

import (
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"gorm.io/driver/postgres"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
)

// SQLite opens a new SQLite database, as [SQLiteDSN] describes it, with a logger that discards
// everything. It is closed when the test ends.
func SQLite(t testing.TB) *gorm.DB {
	t.Helper()
	return open(t, sqlite.Open(SQLiteDSN(t)))
}

// SQLiteDSN names a new SQLite database for the driver gorm.io/driver/sqlite: a file in the test's
// temporary directory with a write-ahead log, immediate transactions and a busy timeout of five
// seconds. Other processes may open it, too. The file is removed when the test ends; close your
// connections before.
func SQLiteDSN(t testing.TB) string {
	t.Helper()
	path := filepath.ToSlash(filepath.Join(t.TempDir(), "outbox.db"))
	if !strings.HasPrefix(path, "/") {
		path = "/" + path // C:/… in a file: URI
	}
	dsn := url.URL{Scheme: "file", Path: path, RawQuery: url.Values{
		"_journal_mode": {"WAL"},
		"_busy_timeout": {"5000"},
		"_txlock":       {"immediate"},
		// Enough for any crash of a process; only a power failure could lose a commit.
		"_synchronous": {"NORMAL"},
	}.Encode()}
	return dsn.String()
}

// Postgres opens a new schema on a PostgreSQL server, as [PostgresDSN] describes it, with a logger
// that discards everything and at most 20 connections, which stay open. It is closed when the test
// ends.
func Postgres(t testing.TB) *gorm.DB {
	t.Helper()
	db := open(t, postgres.Open(PostgresDSN(t)))
	pool, err := db.DB()
	if err != nil {
		t.Fatalf("testdb: pool: %v", err)
	}
	pool.SetMaxOpenConns(20)
	pool.SetMaxIdleConns(20)
	return db
}

func open(t testing.TB, dialector gorm.Dialector) *gorm.DB {
	t.Helper()
	db, err := gorm.Open(dialector, &gorm.Config{Logger: logger.Discard})
	if err != nil {
		t.Fatalf("testdb: open %s: %v", dialector.Name(), err)
	}
	pool, err := db.DB()
	if err != nil {
		t.Fatalf("testdb: pool: %v", err)
	}
	t.Cleanup(func() {
		if err := pool.Close(); err != nil {
			t.Errorf("testdb: close %s: %v", dialector.Name(), err)
		}
	})
	return db
}
