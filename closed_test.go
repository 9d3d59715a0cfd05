package outbox_test

import (
	"context"
	"database/sql"
	"log/slog"
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
	"github.com/gorm-outbox/outbox/testutil"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

// A pool that the application closes too early ends Run at once, with an error that says what to
// do.
func TestPoolClosedBeforeRunEnds(t *testing.T) {
	for name, stopped := range map[string]bool{"while Run dispatches": false, "while Run drains": true} {
		t.Run(name, func(t *testing.T) {
			dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
				var said logBuffer
				running := make(chan struct{})
				// So long that nothing but the closed pool ends the handler.
				p := dbtest.Install(t, db, outbox.Options{Logger: said.logger(), ShutdownGrace: time.Hour}, func(p *outbox.Plugin) {
					p.Handle(cancelOrder, func(ctx context.Context) error {
						close(running)
						<-ctx.Done()
						return ctx.Err()
					})
				})
				dbtest.Create(t, db, cancelOrder, nil)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				done := make(chan error, 1)
				go func() { done <- p.Run(ctx) }()
				dbtest.Receive(t, running)
				if stopped {
					cancel()
				}
				pool, err := db.DB()
				if err != nil {
					t.Fatal(err)
				}
				if err := pool.Close(); err != nil {
					t.Fatal(err)
				}
				if err := dbtest.Receive(t, done); err == nil || !strings.Contains(err.Error(), "the pool was closed before Run had ended") {
					t.Errorf("Run gave %v", err)
				}
				if said.lines("database error") != 0 {
					t.Error("it is taken for a failure of the database")
				}
			})
		})
	}
}

// What a handler does that is left behind when the pool is closed is recorded by nobody, and Run
// says so.
func TestPoolClosedWhileAHandlerIsStuck(t *testing.T) {
	db := testdb.SQLite(t)
	running, leave := make(chan struct{}), make(chan struct{})
	defer close(leave)
	p := dbtest.Install(t, db, outbox.Options{CancelGrace: 50 * time.Millisecond, ShutdownGrace: time.Hour}, func(p *outbox.Plugin) {
		p.Handle(cancelOrder, func(context.Context) error {
			close(running)
			<-leave
			return nil
		})
	})
	dbtest.Create(t, db, cancelOrder, nil)
	done := make(chan error, 1)
	go func() { done <- p.Run(t.Context()) }()
	dbtest.Receive(t, running)
	pool, err := db.DB()
	if err != nil {
		t.Fatal(err)
	}
	if err := pool.Close(); err != nil {
		t.Fatal(err)
	}
	if err := dbtest.Receive(t, done); err == nil || !strings.Contains(err.Error(), "1 handlers") || !strings.Contains(err.Error(), "the outcomes of 1 runs could not be recorded") {
		t.Errorf("Run gave %v", err)
	}
}

func TestRunWithAnEndedContext(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		var said logBuffer
		p := dbtest.Install(t, db, outbox.Options{Logger: said.logger()}, nil)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := p.Run(ctx); err != nil {
			t.Error(err)
		}
		if said.lines("level=INFO", "not started, because Run's context has ended", "context canceled") != 1 || said.lines("outbox: started") != 0 {
			t.Error("it does not say that it did not start")
		}
	})
}

// A *gorm.DB that is opened on a transaction creates in it; the plugin's own work goes to the pool
// behind.
func TestGormOnATransaction(t *testing.T) {
	for name, d := range map[string]struct {
		pool func(testing.TB) *gorm.DB
		on   func(gorm.ConnPool) gorm.Dialector
	}{
		"sqlite":   {testdb.SQLite, func(c gorm.ConnPool) gorm.Dialector { return &sqlite.Dialector{Conn: c} }},
		"postgres": {testdb.Postgres, func(c gorm.ConnPool) gorm.Dialector { return postgres.New(postgres.Config{Conn: c}) }},
		"mariadb":  {testdb.MariaDB, func(c gorm.ConnPool) gorm.Dialector { return mysql.New(mysql.Config{Conn: c}) }},
	} {
		t.Run(name, func(t *testing.T) {
			db := d.pool(t)
			pool, err := db.DB()
			if err != nil {
				t.Fatal(err)
			}
			shop(t, db, outbox.Options{})
			open := func() (*sql.Tx, *gorm.DB, *outbox.Plugin) {
				sqlTx, err := pool.BeginTx(t.Context(), &sql.TxOptions{})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { sqlTx.Rollback() })
				onTx, err := gorm.Open(d.on(sqlTx), &gorm.Config{Logger: logger.Discard})
				if err != nil {
					t.Fatal(err)
				}
				p := outbox.New(outbox.Options{RequireTx: true, Logger: slog.New(slog.DiscardHandler)})
				p.Handle(cancelOrder, func(_ context.Context, tx *gorm.DB) error { return tx.Create(&shopOrder{Name: "by the handler"}).Error })
				if err := onTx.Use(p); err != nil {
					t.Fatal(err)
				}
				return sqlTx, onTx, p
			}
			sqlTx, onTx, _ := open()
			task := dbtest.Create(t, onTx, cancelOrder, nil)
			if err := sqlTx.Rollback(); err != nil {
				t.Fatal(err)
			}
			if taskExists(t, db, task.ID) {
				t.Error("the task outlived its transaction")
			}
			sqlTx, onTx, p := open()
			task = dbtest.Create(t, onTx, cancelOrder, nil)
			if err := sqlTx.Commit(); err != nil {
				t.Fatal(err)
			}
			if err := p.Migrate(t.Context()); err != nil {
				t.Error(err)
			}
			if n := testutil.Drain(t, p); n != 1 { // it reads through the plugin's own handle
				t.Fatalf("%d ran", n)
			}
			if past := dbtest.Ended(t, db, task.ID); past.Status != outbox.StatusSuccess {
				t.Errorf("ended as %s: %s", past.Status, *past.Error)
			}
			conn, err := pool.Conn(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			onConn, err := gorm.Open(d.on(conn), &gorm.Config{Logger: logger.Discard})
			if err != nil {
				t.Fatal(err)
			}
			err = onConn.Use(outbox.New(outbox.Options{}))
			if err == nil || !strings.Contains(err.Error(), "is opened on a *sql.Conn") || !strings.Contains(err.Error(), "tx.Statement.ConnPool") {
				t.Errorf("Use on a single connection gave %v", err)
			}
			tx := db.WithContext(t.Context())
			tx.Statement.ConnPool = conn // as that error says
			if !taskExists(t, db, dbtest.Create(t, tx, cancelOrder, nil).ID) {
				t.Error("nothing was created on a single connection")
			}
		})
	}
}
