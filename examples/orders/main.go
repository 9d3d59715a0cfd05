// Orders tells what this library is for, on a real database, as it happens: an order is stored
// together with a task that cancels it unless it is paid in time.
//
//	go run ./examples/orders                  # on SQLite, in a temporary file
//	go run ./examples/orders -postgres DSN    # on PostgreSQL, in a schema of its own
//	go run ./examples/orders -mysql DSN       # on MySQL or MariaDB, in a database of its own
//	go run ./examples/orders -admin 127.0.0.1:0    # and with the administrator's pages, until it is interrupted
//
// Each step is checked in the database. The program ends by itself, with status 1 if the story did
// not come out as told.
package main

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"gorm.io/driver/mysql"
	"gorm.io/driver/postgres"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
	"gorm.io/gorm/schema"

	"github.com/gorm-outbox/outbox"
)

// halfAnHour is as long as the story can wait.
const halfAnHour = 2 * time.Second

func main() {
	var at place
	flag.StringVar(&at.postgres, "postgres", "", "DSN of a PostgreSQL database to use instead of SQLite")
	flag.StringVar(&at.mysql, "mysql", "", "DSN of a MySQL or MariaDB server, whose user may create databases, to use instead of SQLite")
	addr := flag.String("admin", "", "where to serve the administrator's pages; the password travels in clear, so only on this machine")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Stdout, at, *addr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "orders: the story did not come out as told:", err)
		os.Exit(1)
	}
}

// run opens the database, wires the application up, and tells the story. With an address it serves
// the administrator's pages meanwhile, and afterwards until ctx is done.
func run(ctx context.Context, out io.Writer, at place, addr string) (err error) {
	s := &story{out: out, begun: time.Now()}
	db, remove, err := open(at, s)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()

	// This is all that an application does to have an outbox.
	s.db = db
	s.orders = &OrderSvc{db: db, patience: halfAnHour}
	s.mailer = &Mailer{}
	plugin := outbox.New(outbox.Options{
		Logger: slog.New(slog.DiscardHandler), // the story tells it; without this line it goes to slog.Default()
	})
	plugin.Register("services.OrderSvc", s.orders, "CheckAndCancel")
	plugin.Register("services.Mailer", s.mailer, "SendReceipt")
	if err := db.Use(plugin); err != nil {
		return err
	}
	if err := plugin.Migrate(ctx); err != nil {
		return err
	}
	if err := db.AutoMigrate(&Order{}); err != nil {
		return err
	}
	if addr != "" {
		closePages, err := s.servePages(plugin, addr)
		if err != nil {
			return err
		}
		defer closePages()
	}
	dispatching, stop := context.WithCancel(ctx)
	stopped := make(chan error, 1)
	go func() { stopped <- plugin.Run(dispatching) }()

	telling, cancel := context.WithTimeout(ctx, 9*time.Second)
	err = s.tell(telling)
	cancel()
	if err == nil && addr != "" {
		s.say("The pages stay. Interrupt to close them.")
		<-ctx.Done()
	}
	stop()
	return errors.Join(err, <-stopped)
}

// place is where the story plays, by DSN; empty means SQLite.
type place struct{ postgres, mysql string }

// open opens a fresh database; remove closes it and leaves nothing behind.
func open(at place, s *story) (db *gorm.DB, remove func() error, err error) {
	config := &gorm.Config{Logger: logger.Discard}
	if at == (place{}) {
		dir, err := os.MkdirTemp("", "orders-")
		if err != nil {
			return nil, nil, err
		}
		path := filepath.Join(dir, "shop.db")
		// Immediate transactions wait for each other; deferred ones would fail as soon as two of
		// them write.
		db, err := gorm.Open(sqlite.Open(path+"?_journal_mode=WAL&_busy_timeout=5000&_txlock=immediate"), config)
		if err != nil {
			return nil, nil, errors.Join(err, os.RemoveAll(dir))
		}
		s.say("On SQLite, in %s. %v stands for thirty minutes.", path, halfAnHour)
		return db, func() error { return errors.Join(closePool(db), os.RemoveAll(dir)) }, nil
	}

	// The naming strategy puts the application's tables into a schema, and the outbox's follow.
	// MySQL calls it a database.
	name := "orders_" + strings.ToLower(rand.Text()[:12])
	config.NamingStrategy = schema.NamingStrategy{TablePrefix: name + "."}
	dialector, drop, where := postgres.Open(at.postgres), "DROP SCHEMA "+name+" CASCADE", "On PostgreSQL, in the schema"
	if at.mysql != "" {
		dialector, drop, where = mysql.Open(at.mysql), "DROP SCHEMA "+name, "On MySQL, in the database"
	}
	if db, err = gorm.Open(dialector, config); err != nil {
		return nil, nil, err
	}
	if err := db.Exec("CREATE SCHEMA " + name).Error; err != nil {
		return nil, nil, errors.Join(err, closePool(db))
	}
	s.say("%s %s. %v stands for thirty minutes.", where, name, halfAnHour)
	return db, func() error { return errors.Join(db.Exec(drop).Error, closePool(db)) }, nil
}

func closePool(db *gorm.DB) error {
	pool, err := db.DB()
	if err != nil {
		return err
	}
	return pool.Close()
}
