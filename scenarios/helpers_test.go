package scenarios_test

import (
	"context"
	"database/sql"
	"log/slog"
	"regexp"
	"strings"
	"testing"
	"time"

	"gorm.io/driver/mysql"
	"gorm.io/driver/postgres"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

// database is one that every case runs on, unless the case says why it cannot be had there.
type database struct {
	name      string
	driver    string // as it is registered with database/sql
	dsn       func(testing.TB) string
	dialector func(*sql.DB) gorm.Dialector
}

var databases = []database{
	{"sqlite", "sqlite3", testdb.SQLiteDSN, func(pool *sql.DB) gorm.Dialector { return sqlite.New(sqlite.Config{Conn: pool}) }},
	{"postgres", "pgx", testdb.PostgresDSN, func(pool *sql.DB) gorm.Dialector { return postgres.New(postgres.Config{Conn: pool}) }},
	{"mariadb", "mysql", func(t testing.TB) string { return testdb.MariaDBDSN(t) + interpolated },
		func(pool *sql.DB) gorm.Dialector { return mysql.New(mysql.Config{Conn: pool}) }},
	{"mysql", "mysql", func(t testing.TB) string { return testdb.MySQLDSN(t) + interpolated },
		func(pool *sql.DB) gorm.Dialector { return mysql.New(mysql.Config{Conn: pool}) }},
}

// interpolated has the driver put parameters into the text, so that what passes a tap or a proxy is
// a whole statement.
const interpolated = "&interpolateParams=true&multiStatements=true"

func named(name string) database {
	for _, d := range databases {
		if d.name == name {
			return d
		}
	}
	panic("no database " + name)
}

// each runs a test on a fresh database of each kind. They run in parallel, because they mostly
// wait.
func each(t *testing.T, test func(t *testing.T, d database, dsn string)) {
	t.Parallel()
	for _, d := range databases {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			test(t, d, d.dsn(t))
		})
	}
}

// on runs a test on one kind of database, for faults that the others cannot have.
func on(t *testing.T, name string, test func(t *testing.T, d database, dsn string)) {
	t.Parallel()
	t.Run(name, func(t *testing.T) {
		d := named(name)
		test(t, d, d.dsn(t))
	})
}

// servers runs a test on each kind of database that is a server.
func servers(t *testing.T, test func(t *testing.T, d database, dsn string)) {
	t.Parallel()
	for _, name := range []string{"postgres", "mariadb", "mysql"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := named(name)
			test(t, d, d.dsn(t))
		})
	}
}

// plain is a statement as all databases have it: without MySQL's backticks, its alias before a
// column, and the schema before a table.
func plain(statement string) string {
	return schemaBefore.ReplaceAllString(mysqlWriting.Replace(statement), `"outbox_`)
}

var (
	mysqlWriting = strings.NewReplacer("`", `"`, "SET t.state", "SET state")
	schemaBefore = regexp.MustCompile(`"[^"]+"\."outbox_`)
)

// word translates a part of a statement as it is written for PostgreSQL.
func (d database) word(part string) string {
	if theirs, ok := map[string]string{
		`DELETE FROM "outbox_tasks"`: "DELETE t FROM",
		"version":                    "outbox_tasks",
		"begin":                      "start transaction",
	}[part]; ok && d.driver == "mysql" {
		return theirs
	}
	return part
}

func (d database) words(parts []string) (theirs []string) {
	for _, part := range parts {
		theirs = append(theirs, d.word(part))
	}
	return theirs
}

// effect is written by handlers, inside their transaction where they have one. No key hides a second
// one.
type effect struct {
	Task    string
	Attempt int
}

// open opens a database through a tap, which may be nil, and makes the table of effects.
func (d database) open(t testing.TB, dsn string, tp *tap) *gorm.DB {
	t.Helper()
	db, pool, err := d.connect(dsn, tp)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pool.Close() })
	if err := db.AutoMigrate(&effect{}); err != nil {
		t.Fatal(err)
	}
	return db
}

func (d database) connect(dsn string, tp *tap) (*gorm.DB, *sql.DB, error) {
	plain, err := sql.Open(d.driver, dsn)
	if err != nil {
		return nil, nil, err
	}
	pool := plain
	if tp != nil {
		pool = sql.OpenDB(&tapConnector{tap: tp, real: plain.Driver(), dsn: dsn})
		_ = plain.Close()
	}
	pool.SetMaxOpenConns(30)
	pool.SetMaxIdleConns(30)
	db, err := gorm.Open(d.dialector(pool), &gorm.Config{Logger: logger.Discard})
	return db, pool, err
}

const limit = 1500 * time.Millisecond // of heartbeats, where a test waits for it

// quick are options whose scans, heartbeats and retries come soon.
func quick(change ...func(*outbox.Options)) outbox.Options {
	o := outbox.Options{
		Scan: "@every 20ms", Heartbeat: 100 * time.Millisecond, HeartbeatLimit: limit,
		Backoff: func(int) time.Duration { return time.Millisecond }, Logger: slog.New(slog.DiscardHandler),
	}
	for _, c := range change {
		c(&o)
	}
	return o
}

// patient gives heartbeats the time that a busy machine may need, in tests in which no process may
// be declared dead.
func patient(o *outbox.Options) { o.Heartbeat, o.HeartbeatLimit = 100*time.Millisecond, 30*time.Second }

// effects of a task.
func effects(t testing.TB, db *gorm.DB, task string) int64 {
	t.Helper()
	return dbtest.Count(t, db.Where("task = ?", task), &effect{})
}

// leave writes the effect of a run.
func leave(ctx context.Context, db *gorm.DB) error {
	task, _ := outbox.TaskFrom(ctx)
	return db.WithContext(ctx).Create(&effect{task.ID, task.Attempt}).Error
}

// fine is a handler that has nothing to do.
func fine(context.Context) error { return nil }

// text of a history row's error.
func text(h *outbox.HistoryModel) string {
	if h.Error == nil {
		return ""
	}
	return *h.Error
}

// run a statement or end the test.
func run(t testing.TB, db *gorm.DB, statement string, args ...any) {
	t.Helper()
	if err := db.Exec(statement, args...).Error; err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}
