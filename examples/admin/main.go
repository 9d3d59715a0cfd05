// Admin serves the administrator's pages of a busy little shop, which creates, finishes and fails
// tasks all the time.
//
//	go run ./examples/admin                        # on SQLite in a temporary file, at a free port of 127.0.0.1
//	go run ./examples/admin -addr 127.0.0.1:8080 -db shop.db
//
// It prints the address, a user and a password, which is new with every start. Interrupt it to end
// it.
package main

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/admin"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "where to listen; the password travels in clear, so only on this machine")
	path := flag.String("db", "", "SQLite file to use; empty means a temporary one")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout, *addr, *path); err != nil {
		fmt.Fprintln(os.Stderr, "admin:", err)
		os.Exit(1)
	}
}

// withC says what to do when Go has found no C compiler, and so left SQLite out.
func withC(err error) error {
	if strings.Contains(err.Error(), "CGO_ENABLED") {
		return errors.New("the SQLite driver of this example needs a C compiler: install gcc or clang, and run it again with CGO_ENABLED=1")
	}
	return err
}

// run serves the pages until ctx is done.
func run(ctx context.Context, out io.Writer, addr, path string) (err error) {
	if path == "" {
		dir, err := os.MkdirTemp("", "outbox-admin-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		path = filepath.Join(dir, "shop.db")
	}
	db, err := gorm.Open(sqlite.Open("file:"+path+"?_journal_mode=WAL&_busy_timeout=5000&_txlock=immediate"), &gorm.Config{Logger: logger.Discard})
	if err != nil {
		return withC(err)
	}
	pool, err := db.DB()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pool.Close()) }()

	plugin := outbox.New(outbox.Options{Logger: slog.New(slog.DiscardHandler), Concurrency: 4, ShutdownGrace: 100 * time.Millisecond})
	s := &shop{db: db}
	s.register(plugin)
	if err := db.Use(plugin); err != nil {
		return err
	}
	if err := plugin.Migrate(ctx); err != nil {
		return err
	}

	user, password := "demo", rand.Text()[:12]
	hash, err := admin.HashPassword(password)
	if err != nil {
		return err
	}
	pages, err := admin.New(plugin, admin.Options{Title: "Little shop", Authorize: admin.BasicAuth(map[string]string{user: hash})})
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("/admin/", http.StripPrefix("/admin", pages))
	mux.Handle("/{$}", http.RedirectHandler("/admin/", http.StatusSeeOther))

	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	fmt.Fprintf(out, "The shop is open.\n\n    http://%s/admin/\n    user %s, password %s\n\nInterrupt to close it.\n", listener.Addr(), user, password)

	working, closeShop := context.WithCancel(ctx)
	defer closeShop()
	ended := make(chan error, 3)
	go func() { ended <- server.Serve(listener) }()
	go func() { ended <- plugin.Run(working) }()
	go func() { ended <- s.sell(working) }()
	select {
	case <-ctx.Done():
	case err = <-ended: // whatever ends first ends the rest
		ended <- nil
	}
	closeShop()
	shutdown, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	err = errors.Join(err, server.Shutdown(shutdown))
	for range 3 {
		if e := <-ended; !errors.Is(e, http.ErrServerClosed) && !errors.Is(e, context.Canceled) {
			err = errors.Join(err, e)
		}
	}
	return err
}
