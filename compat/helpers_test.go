package compat

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/url"
	"path/filepath"
	"sync"
	"testing"
	"time"

	glebarez "github.com/glebarez/sqlite"
	"gorm.io/driver/mysql"
	"gorm.io/driver/postgres"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

// database is a kind of database, through one driver.
type database struct {
	name      string
	dsn       func(testing.TB) string
	dialector func(dsn string) gorm.Dialector
}

var (
	mattn = database{"sqlite", testdb.SQLiteDSN, sqlite.Open}
	pure  = database{"sqlite in pure Go", pureDSN, glebarez.Open}
	pgx   = database{"postgres", testdb.PostgresDSN, postgres.Open}
	maria = database{"mariadb", testdb.MariaDBDSN, mysql.Open}
	my    = database{"mysql", testdb.MySQLDSN, mysql.Open}
)

// eachDB runs a test with each kind of database.
func eachDB(t *testing.T, test func(t *testing.T, d database)) {
	t.Helper()
	for _, d := range []database{mattn, pure, pgx} {
		t.Run(d.name, func(t *testing.T) { test(t, d) })
	}
}

// pureDSN is testdb.SQLiteDSN in the words of the driver in pure Go.
func pureDSN(t testing.TB) string {
	return filepath.Join(t.TempDir(), "outbox.db") + "?" + url.Values{
		"_pragma": {"busy_timeout(5000)", "journal_mode(WAL)", "synchronous(NORMAL)"},
		"_txlock": {"immediate"},
	}.Encode()
}

// open opens a new database; a nil config is GORM's default.
func (d database) open(t testing.TB, config *gorm.Config) *gorm.DB {
	t.Helper()
	return d.openDSN(t, d.dsn(t), config)
}

func (d database) openDSN(t testing.TB, dsn string, config *gorm.Config) *gorm.DB {
	t.Helper()
	if config == nil {
		config = &gorm.Config{}
	}
	if config.Logger == nil {
		config.Logger = logger.Discard
	}
	db, err := gorm.Open(d.dialector(dsn), config)
	if err != nil {
		t.Fatal(err)
	}
	pool, err := db.DB()
	if err != nil {
		t.Fatal(err)
	}
	pool.SetMaxOpenConns(20)
	pool.SetMaxIdleConns(20) // opening connections would be most of the work
	t.Cleanup(func() { pool.Close() })
	return db
}

// order is what an application writes together with its tasks.
type order struct {
	ID        uint
	Item      string
	Status    string
	CreatedAt time.Time
}

type orderArgs struct {
	ID     uint   `json:"id"`
	Status string `json:"status"`
}

const (
	updateTx = "orders.updateTx" // sets the order's status in its own transaction
	update   = "orders.update"   // does so with the application's db
	fail     = "orders.fail"
	nothing  = "orders.nothing"
)

var errFail = errors.New("no such luck")

// install uses the plugin with the handlers above, and migrates the application's table and its
// own.
func install(t *testing.T, db *gorm.DB, opts outbox.Options) *outbox.Plugin {
	t.Helper()
	p := newPlugin(db, opts)
	if err := db.Use(p); err != nil {
		t.Fatal(err)
	}
	migrate(t, db, p)
	return p
}

func migrate(t *testing.T, db *gorm.DB, p *outbox.Plugin) {
	t.Helper()
	if err := p.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := db.AutoMigrate(&order{}); err != nil {
		t.Fatal(err)
	}
}

func newPlugin(db *gorm.DB, opts outbox.Options) *outbox.Plugin {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	p := outbox.New(opts)
	set := func(tx *gorm.DB, a orderArgs) error {
		r := tx.Model(&order{}).Where("id = ?", a.ID).Update("status", a.Status)
		if r.Error == nil && r.RowsAffected != 1 {
			return errors.New("the order is not there")
		}
		return r.Error
	}
	p.Handle(updateTx, func(_ context.Context, tx *gorm.DB, a orderArgs) error { return set(tx, a) })
	p.Handle(update, func(ctx context.Context, a orderArgs) error { return set(db.WithContext(ctx), a) })
	p.Handle(fail, func(context.Context, orderArgs) error { return errFail })
	p.Handle(nothing, func(context.Context, orderArgs) error { return nil })
	return p
}

// place makes an order with a task in one transaction.
func place(t *testing.T, db *gorm.DB, path, status string, opts ...outbox.CreateOption) (o order, task *outbox.TaskModel) {
	t.Helper()
	o = order{Item: "pen", Status: "new"}
	err := db.Transaction(func(tx *gorm.DB) error {
		if err := tx.Create(&o).Error; err != nil {
			return err
		}
		task = dbtest.Create(t, tx, path, orderArgs{o.ID, status}, opts...)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return o, task
}

// placed places an order, waits for its task and checks what came of both.
func placed(t *testing.T, db *gorm.DB, path, status string) {
	t.Helper()
	o, task := place(t, db, path, status)
	past := dbtest.Ended(t, db, task.ID)
	if past.Status != outbox.StatusSuccess {
		t.Fatalf("%s ended as %s: %v", path, past.Status, deref(past.Error))
	}
	wantStatus(t, db, o.ID, status)
}

func wantStatus(t *testing.T, db *gorm.DB, id uint, status string) {
	t.Helper()
	var got order
	if err := db.Where("id = ?", id).Take(&got).Error; err != nil {
		t.Fatal(err)
	}
	if got.Status != status {
		t.Errorf("order %d is %s, want %s", id, got.Status, status)
	}
}

func deref[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// logs keeps what is logged at or above a level.
type logs struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *logs) logger(level slog.Level) *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: level}))
}

func init() { dbtest.Limit = 3 * time.Minute } // the driver in pure Go is slow under the race detector
