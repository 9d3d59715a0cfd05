package main

import (
	"context"
	"database/sql"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"testing"

	"github.com/gorm-outbox/outbox/testutil/testdb"
	_ "github.com/jackc/pgx/v5/stdlib"
)

// durable undoes what testutil does to make its servers fast, and says nothing else: all the rest
// is PostgreSQL's default.
var durable = []string{"fsync = on", "synchronous_commit = on", "full_page_writes = on", "timezone = 'UTC'"}

// server is a throwaway PostgreSQL that is started at its first use. Each contestant has a database
// of its own in it.
type server struct {
	host     *host
	settings []string
	dsn      string
}

// database makes an empty database and returns its DSN.
func (s *server) database(ctx context.Context, name string) (string, error) {
	if s.dsn == "" {
		s.dsn = testdb.StartPostgres(s.host, append(durable[:len(durable):len(durable)], s.settings...)...).DSN()
	}
	for _, statement := range []string{"DROP DATABASE IF EXISTS %s WITH (FORCE)", "CREATE DATABASE %s"} {
		if err := execOn(ctx, s.dsn, fmt.Sprintf(statement, name)); err != nil {
			return "", err
		}
	}
	u, err := url.Parse(s.dsn)
	if err != nil {
		return "", err
	}
	u.Path = "/" + name
	return u.String(), nil
}

func execOn(ctx context.Context, dsn, statement string) error {
	db, err := sql.Open("pgx", dsn)
	if err != nil {
		return err
	}
	defer db.Close()
	_, err = db.ExecContext(ctx, statement)
	return err
}

type testingTB = testing.TB

// host stands in for the test that testutil's servers ask for.
type host struct {
	testingTB
	dir     string
	cleanup []func()
}

func (h *host) Helper()                           {}
func (h *host) Cleanup(f func())                  { h.cleanup = append(h.cleanup, f) }
func (h *host) Errorf(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
func (h *host) Skipf(format string, args ...any)  { h.Fatalf(format, args...) }
func (h *host) Fatalf(format string, args ...any) {
	h.Errorf(format, args...)
	h.close()
	os.Exit(1)
}

// file names a file in the directory of this run, for SQLite.
func (h *host) file(name string) (string, error) {
	if h.dir == "" {
		var err error
		if h.dir, err = os.MkdirTemp("", "outbox-bench-"); err != nil {
			return "", err
		}
		h.Cleanup(func() { _ = os.RemoveAll(h.dir) })
	}
	return filepath.Join(h.dir, name), nil
}

func (h *host) close() {
	for len(h.cleanup) > 0 {
		last := len(h.cleanup) - 1
		f := h.cleanup[last]
		h.cleanup = h.cleanup[:last]
		f()
	}
}
