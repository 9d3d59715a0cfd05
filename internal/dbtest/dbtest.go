// Package dbtest is what the tests of every module share: the databases that each test runs on, and
// the steps that most tests take. It uses the library as an application does.
package dbtest

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"gorm.io/driver/mysql"
	"gorm.io/driver/postgres"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

// Database is one kind of database.
type Database struct {
	Name    string
	Dialect string                    // GORM's name of its dialect
	Open    func(testing.TB) *gorm.DB // a fresh database
	DSN     func(testing.TB) string   // of a fresh database
}

// Databases are those that every test of a database runs on.
var Databases = []Database{
	{"sqlite", "sqlite", testdb.SQLite, testdb.SQLiteDSN},
	{"postgres", "postgres", testdb.Postgres, testdb.PostgresDSN},
	{"mariadb", "mysql", testdb.MariaDB, testdb.MariaDBDSN},
	{"mysql", "mysql", testdb.MySQL, testdb.MySQLDSN},
}

// Limit is how long Receive, Eventually and Ended wait.
var Limit = time.Minute

// Each runs a test on a fresh database of each kind, without the plugin, on all kinds at a time and
// after the test's own function has returned.
func Each(t *testing.T, test func(t *testing.T, db *gorm.DB)) {
	t.Helper()
	for _, d := range Databases {
		t.Run(d.Name, func(t *testing.T) {
			t.Parallel()
			test(t, d.Open(t))
		})
	}
}

// EachInTurn is for a test of what the databases would share, such as the process's goroutines.
func EachInTurn(t *testing.T, test func(t *testing.T, db *gorm.DB)) {
	t.Helper()
	for _, d := range Databases {
		t.Run(d.Name, func(t *testing.T) { test(t, d.Open(t)) })
	}
}

// Install makes a plugin, lets setup register handlers, and migrates. Without a Logger it logs
// nothing.
func Install(t testing.TB, db *gorm.DB, opts outbox.Options, setup func(*outbox.Plugin)) *outbox.Plugin {
	t.Helper()
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	p := outbox.New(opts)
	if setup != nil {
		setup(p)
	}
	if err := db.Use(p); err != nil {
		t.Fatal(err)
	}
	if err := p.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return p
}

// Start runs the plugin until the test ends, or until the returned function is called, which waits
// for the drain.
func Start(t testing.TB, p *outbox.Plugin) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// Receive waits for a value.
func Receive[T any](t testing.TB, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(Limit):
		t.Fatalf("nothing came within %v", Limit)
	}
	return v
}

// Eventually waits until a condition holds.
func Eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(Limit)
	for !holds() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("not within %v: %s", Limit, what)
		}
	}
}

// Ended waits for a task's history row. It waits out errors of the database, which may be the fault
// under test.
func Ended(t testing.TB, db *gorm.DB, id string) *outbox.HistoryModel {
	t.Helper()
	var past *outbox.HistoryModel
	var failed error
	Eventually(t, "task "+id+" ends", func() bool {
		_, past, failed = outbox.Lookup(db, id)
		if errors.Is(failed, outbox.ErrNotInstalled) || errors.Is(failed, outbox.ErrNotFound) {
			t.Fatal(failed)
		}
		return past != nil
	})
	return past
}

// Create makes a task, or ends the test.
func Create(t testing.TB, tx *gorm.DB, function string, args any, opts ...outbox.CreateOption) *outbox.TaskModel {
	t.Helper()
	task, err := outbox.Create(tx, function, args, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return task
}

// Count counts the rows of a model.
func Count(t testing.TB, db *gorm.DB, model any) int64 {
	t.Helper()
	var n int64
	if err := db.Model(model).Count(&n).Error; err != nil {
		t.Fatal(err)
	}
	return n
}

// ShortLimit is the heartbeat limit of ShortHeartbeats.
const ShortLimit = 2 * time.Second

// ShortHeartbeats are options with which a dead process is found soon.
func ShortHeartbeats(hooks ...outbox.Hooks) outbox.Options {
	return outbox.Options{
		Scan: "@every 20ms", Heartbeat: 100 * time.Millisecond, HeartbeatLimit: ShortLimit, Hooks: hooks,
		Backoff: func(int) time.Duration { return time.Millisecond }, Logger: slog.New(slog.DiscardHandler),
	}
}

// OpenDSN opens the database of a DSN that a Database gave, as a child process does.
func OpenDSN(dsn string) (*gorm.DB, error) {
	config := &gorm.Config{Logger: logger.Discard}
	if strings.HasPrefix(dsn, "file:") {
		return gorm.Open(sqlite.Open(dsn), config)
	}
	if strings.Contains(dsn, "@tcp(") {
		return gorm.Open(mysql.Open(dsn), config)
	}
	return gorm.Open(postgres.Open(dsn), config)
}
