package outbox_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

// databases that every database test runs on.
var databases = []struct {
	name, dialect string // the dialect is GORM's name of it
	open          func(testing.TB) *gorm.DB
	dsn           func(testing.TB) string
}{
	{"sqlite", "sqlite", testdb.SQLite, testdb.SQLiteDSN},
	{"postgres", "postgres", testdb.Postgres, testdb.PostgresDSN},
	{"mariadb", "mysql", testdb.MariaDB, testdb.MariaDBDSN},
	{"mysql", "mysql", testdb.MySQL, testdb.MySQLDSN},
}

// mysqlServers are those that understand MySQL's dialect.
var mysqlServers = map[string]func(testing.TB) *gorm.DB{"mariadb": testdb.MariaDB, "mysql": testdb.MySQL}

// eachDB runs a test on a fresh database of each kind, without the plugin, on all kinds at a time
// and after the test's own function has returned.
func eachDB(t *testing.T, test func(t *testing.T, db *gorm.DB)) {
	t.Helper()
	for _, d := range databases {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			test(t, d.open(t))
		})
	}
}

// eachDBInTurn is for a test of what the databases would share, such as the process's goroutines.
func eachDBInTurn(t *testing.T, test func(t *testing.T, db *gorm.DB)) {
	t.Helper()
	for _, d := range databases {
		t.Run(d.name, func(t *testing.T) { test(t, d.open(t)) })
	}
}

// install makes a plugin with quick heartbeats, lets setup register handlers, and migrates.
func install(t *testing.T, db *gorm.DB, opts outbox.Options, setup func(*outbox.Plugin)) *outbox.Plugin {
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

// start runs the plugin until the test ends, or until the returned function is called, which waits
// for the drain.
func start(t *testing.T, p *outbox.Plugin) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
	t.Cleanup(stop)
	return stop
}

// receive waits for a value.
func receive[T any](t *testing.T, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(30 * time.Second):
		t.Fatal("nothing came within 30 s")
	}
	return v
}

// eventually waits until a condition holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(30 * time.Second)
	for !holds() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

// ended waits for a task's history row.
func ended(t *testing.T, db *gorm.DB, id string) *outbox.HistoryModel {
	t.Helper()
	var past *outbox.HistoryModel
	eventually(t, "task "+id+" ends", func() bool {
		var err error
		if _, past, err = outbox.Lookup(db, id); err != nil {
			t.Fatal(err)
		}
		return past != nil
	})
	return past
}

// create makes a task or fails the test.
func create(t *testing.T, tx *gorm.DB, path string, args any, opts ...outbox.CreateOption) *outbox.TaskModel {
	t.Helper()
	task, err := outbox.Create(tx, path, args, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return task
}

// count rows of a model.
func count(t *testing.T, db *gorm.DB, model any) int64 {
	t.Helper()
	var n int64
	if err := db.Model(model).Count(&n).Error; err != nil {
		t.Fatal(err)
	}
	return n
}
