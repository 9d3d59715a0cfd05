package main

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"testing"

	"gorm.io/driver/mysql"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

// mysqlDurable undoes what testdb does to make its servers fast; all the rest is the server's
// default, but for the binary log.
var mysqlDurable = []string{"--innodb-flush-log-at-trx-commit=1", "--default-time-zone=+00:00"}

// mysqlKind is a server that speaks MySQL's protocol; its throwaway server is started at its first
// use.
type mysqlKind struct {
	name  string
	start func(testing.TB, ...string) *testdb.MySQLServer
}

var (
	onMariaDB = mysqlKind{"MariaDB", testdb.StartMariaDB}
	onMySQL   = mysqlKind{"MySQL", testdb.StartMySQL}
)

// mysqlDSN is the DSN of a throwaway server of a kind.
func (b *bench) mysqlDSN(k mysqlKind) string {
	if b.my == nil {
		b.my = map[string]string{}
	}
	if b.my[k.name] == "" {
		b.my[k.name] = k.start(b.host, mysqlDurable...).DSN() + "&interpolateParams=true"
	}
	return b.my[k.name]
}

// newOn opens a contestant on a new database of a kind of server.
func (b *bench) newOn(k mysqlKind, open func(ctx context.Context, dsn string) (contestant, error)) func(context.Context, string) (contestant, error) {
	return func(ctx context.Context, name string) (contestant, error) {
		dsn := b.mysqlDSN(k)
		for _, statement := range []string{"DROP DATABASE IF EXISTS %s", "CREATE DATABASE %s CHARACTER SET utf8mb4"} {
			if err := execMySQL(ctx, dsn, fmt.Sprintf(statement, name)); err != nil {
				return nil, err
			}
		}
		return open(ctx, strings.Replace(dsn, "/app?", "/"+name+"?", 1))
	}
}

func execMySQL(ctx context.Context, dsn, statement string) error {
	db, err := sql.Open("mysql", dsn)
	if err != nil {
		return err
	}
	defer db.Close()
	_, err = db.ExecContext(ctx, statement)
	return err
}

func (b *bench) enterOursMySQL(k mysqlKind, name string, n int, opts outbox.Options, conns int) entrant {
	return entrant{name, true, n, b.newOn(k, func(ctx context.Context, dsn string) (contestant, error) {
		return openOurs(ctx, mysql.Open(dsn), opts, conns)
	})}
}
