//go:build unix

package main

import (
	"fmt"
	"net/url"
	"strings"
	"testing"

	"gorm.io/driver/mysql"
	"gorm.io/driver/postgres"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-outbox/outbox/testutil/testdb"
)

type testingTB = testing.TB

// database is the database that the four processes share.
type database struct {
	name, dsn string
	// A second database for the runs, if a handler's transaction would keep runs from being
	// written.
	runs   string
	rate   float64
	server interface { // nil if no server can be restarted
		Crash()
		Start()
	}
	// Two statements: sessions selects the ids of the other sessions, end ends one of them.
	sessions, end string
}

type cluster struct{ *testdb.Cluster }

func (c cluster) Crash() { c.Stop("immediate") }

func openDatabase(h *host, kind string) (database, error) {
	switch kind {
	case "postgres":
		// A commit must survive a crash of the server. fsync matters only for a crash of the
		// machine.
		c := testdb.StartPostgres(h, "synchronous_commit = on", "deadlock_timeout = 100ms", "max_connections = 400")
		return database{name: kind, dsn: c.DSN(), rate: 160, server: cluster{c},
			sessions: "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()",
			end:      "SELECT pg_terminate_backend(%d)"}, nil
	case "mariadb", "mysql":
		start := testdb.StartMariaDB
		if kind == "mysql" {
			start = testdb.StartMySQL
		}
		c := start(h, "--innodb-flush-log-at-trx-commit=2", "--max-connections=400")
		return database{name: kind, dsn: c.DSN(), rate: 80, server: c,
			sessions: "SELECT id FROM information_schema.processlist WHERE id <> connection_id() AND db = database()",
			end:      "KILL %d"}, nil
	case "sqlite":
		dsn := testdb.SQLiteDSN(h)
		u, err := url.Parse(dsn)
		if err != nil {
			return database{}, err
		}
		u.Path = strings.TrimSuffix(u.Path, ".db") + "-runs.db"
		return database{name: kind, dsn: dsn, runs: u.String(), rate: 60}, nil
	}
	return database{}, fmt.Errorf("database %q is none of postgres, mariadb, mysql and sqlite", kind)
}

func openDSN(dsn string) (*gorm.DB, error) {
	config := &gorm.Config{Logger: logger.Discard}
	var db *gorm.DB
	var err error
	switch {
	case strings.HasPrefix(dsn, "file:"):
		db, err = gorm.Open(sqlite.Open(dsn), config)
	case strings.Contains(dsn, "@tcp("):
		db, err = gorm.Open(mysql.Open(dsn), config)
	default:
		db, err = gorm.Open(postgres.Open(dsn), config)
	}
	if err != nil {
		return nil, err
	}
	pool, err := db.DB()
	if err != nil {
		return nil, err
	}
	// Each handler may write its run beside its transaction. The dispatcher and the creators need
	// some connections, too.
	conns := 2*slots(dsn) + 8
	pool.SetMaxOpenConns(conns)
	pool.SetMaxIdleConns(conns)
	return db, nil
}

// slots of a process. If several processes can write at a time, a process has enough slots to write
// two groups of outcomes at a time.
func slots(dsn string) int {
	if strings.HasPrefix(dsn, "file:") {
		return 8
	}
	return 40
}
