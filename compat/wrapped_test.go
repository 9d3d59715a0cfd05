package compat

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/XSAM/otelsql"
	pgxv5 "github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/ngrok/sqlmw"
	"gorm.io/driver/postgres"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
	"gorm.io/sharding"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
	"github.com/gorm-outbox/outbox/pgnotify"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

// driverName is of database/sql's list, which is of the process and takes a name once.
func driverName(t *testing.T, kind string) string {
	return fmt.Sprint(kind, " ", t.Name(), " ", time.Now().UnixNano())
}

func openOn(t *testing.T, pool *sql.DB) *gorm.DB {
	t.Helper()
	t.Cleanup(func() { pool.Close() })
	db, err := gorm.Open(postgres.New(postgres.Config{Conn: pool}), &gorm.Config{Logger: logger.Discard})
	if err != nil {
		t.Fatal(err)
	}
	return db
}

// pgnotify listens behind drivers that trace, or says once why it does not; tasks run either way.
func TestNotifyBehindOtherDrivers(t *testing.T) {
	for name, c := range map[string]struct {
		open func(dsn string) (*sql.DB, error)
		own  bool // pgnotify has a connection of its own
		says string
	}{
		"otelsql": {open: func(dsn string) (*sql.DB, error) { return otelsql.Open("pgx", dsn) }},
		"sqlmw": {says: "a connection is a sqlmw.wrappedConn", open: func(dsn string) (*sql.DB, error) {
			driver := driverName(t, "sqlmw")
			sql.Register(driver, sqlmw.Driver(stdlib.GetDefaultDriver(), sqlmw.NullInterceptor{}))
			return sql.Open(driver, dsn)
		}},
		"sqlmw, with a connection of its own": {own: true, open: func(dsn string) (*sql.DB, error) {
			driver := driverName(t, "sqlmw own")
			sql.Register(driver, sqlmw.Driver(stdlib.GetDefaultDriver(), sqlmw.NullInterceptor{}))
			return sql.Open(driver, dsn)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			dsn := testdb.PostgresDSN(t)
			pool, err := c.open(dsn)
			if err != nil {
				t.Fatal(err)
			}
			db := openOn(t, pool)
			opts := pgnotify.Options{Channel: "test " + rand.Text()}
			if c.own {
				opts.Connect = func(ctx context.Context) (*pgxv5.Conn, error) { return pgxv5.Connect(ctx, dsn) }
			}
			var said logs
			scan := "@every 1h"
			if c.says != "" {
				scan = "@every 50ms"
			}
			p := install(t, db, outbox.Options{Wakers: []outbox.Waker{pgnotify.New(opts)}, Logger: said.logger(slog.LevelWarn), Scan: scan})
			producer := openOn(t, stdlibPool(t, dsn))
			if err := producer.Use(outbox.New(outbox.Options{ProducerOnly: true, Wakers: []outbox.Waker{pgnotify.New(opts)},
				Logger: slog.New(slog.DiscardHandler)})); err != nil {
				t.Fatal(err)
			}
			dbtest.Start(t, p)
			if c.says != "" {
				dbtest.Eventually(t, "it is said", func() bool { return strings.Contains(said.String(), c.says) })
			} else {
				dbtest.Eventually(t, "somebody listens", func() bool {
					var n int
					if err := producer.Raw("SELECT count(*) FROM pg_stat_activity WHERE query = 'LISTEN \"' || ? || '\"' AND state = 'idle'",
						opts.Channel).Scan(&n).Error; err != nil {
						t.Fatal(err)
					}
					return n == 1
				})
			}
			for range 3 {
				if past := dbtest.Ended(t, db, dbtest.Create(t, producer, nothing, orderArgs{}).ID); past.Status != outbox.StatusSuccess {
					t.Errorf("ended as %s: %s", past.Status, deref(past.Error))
				}
			}
			if text := said.String(); strings.Contains(text, "database error") || strings.Count(text, "cannot listen") != min(1, len(c.says)) {
				t.Errorf("said:\n%s", text)
			}
		})
	}
}

func stdlibPool(t *testing.T, dsn string) *sql.DB {
	t.Helper()
	config, err := pgxv5.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	return stdlib.OpenDB(*config)
}

// gorm.io/sharding leaves a pool in the handles that it has seen which has Commit and Rollback and
// is no transaction.
func TestSharding(t *testing.T) {
	db := pgx.open(t, nil)
	if err := db.Use(sharding.Register(sharding.Config{ShardingKey: "id", NumberOfShards: 4,
		PrimaryKeyGenerator: sharding.PKSnowflake}, "measurements")); err != nil {
		t.Fatal(err)
	}
	install(t, db, outbox.Options{})
	batch := func(key string) []outbox.NewTask {
		return []outbox.NewTask{{Func: nothing, Args: orderArgs{}}, {Func: nothing, Args: orderArgs{}, Options: []outbox.CreateOption{outbox.Key(key)}}}
	}
	dbtest.Create(t, db, nothing, orderArgs{}, outbox.Key("held"))
	seen := func(tx *gorm.DB) *gorm.DB {
		t.Helper()
		tx = tx.Model(&order{}).Where("id = ?", 1).Find(&[]order{})
		if tx.Error != nil {
			t.Fatal(tx.Error)
		}
		if _, ok := tx.Statement.ConnPool.(*sharding.ConnPool); !ok {
			t.Fatalf("the handle's pool is a %T: the test shows nothing", tx.Statement.ConnPool)
		}
		return tx
	}
	if _, err := outbox.CreateBatch(seen(db), batch("held")...); !errors.Is(err, outbox.ErrDuplicateKey) {
		t.Errorf("a key that is held: %v", err)
	}
	if n := dbtest.Count(t, db, &outbox.TaskModel{}); n != 1 {
		t.Errorf("%d rows are left of a batch that failed", n-1)
	}
	if _, err := outbox.CreateBatch(seen(db), batch("free")...); err != nil {
		t.Errorf("a free key: %v", err)
	}
	undo := errors.New("undo")
	err := db.Transaction(func(tx *gorm.DB) error {
		dbtest.Create(t, seen(tx), nothing, orderArgs{})
		if _, err := outbox.CreateBatch(seen(tx), batch("held")...); !errors.Is(err, outbox.ErrDuplicateKey) {
			t.Errorf("a key that is held, in a transaction: %v", err)
		}
		if _, err := outbox.CreateBatch(seen(tx), batch("another")...); err != nil {
			t.Errorf("a free key, in a transaction: %v", err)
		}
		return undo
	})
	if n := dbtest.Count(t, db, &outbox.TaskModel{}); n != 3 || !errors.Is(err, undo) {
		t.Errorf("%d rows after a rollback, want 3; %v", n, err)
	}
}
