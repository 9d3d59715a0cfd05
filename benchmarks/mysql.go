package main

import (
	"context"
	"database/sql"
	"fmt"
	"strings"

	"gorm.io/driver/mysql"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

// mysqlDurable undoes what testutil does to make its servers fast; all the rest is MariaDB's default.
var mysqlDurable = []string{"--innodb-flush-log-at-trx-commit=1", "--default-time-zone=+00:00"}

// onMySQL opens a contestant on a new database of a throwaway MariaDB, which is started at its first use.
func (b *bench) onMySQL(open func(ctx context.Context, dsn string) (contestant, error)) func(context.Context, string) (contestant, error) {
	return func(ctx context.Context, name string) (contestant, error) {
		if b.my == "" {
			b.my = testdb.StartMariaDB(b.host, mysqlDurable...).DSN() + "&interpolateParams=true"
		}
		for _, statement := range []string{"DROP DATABASE IF EXISTS %s", "CREATE DATABASE %s CHARACTER SET utf8mb4"} {
			if err := execMySQL(ctx, b.my, fmt.Sprintf(statement, name)); err != nil {
				return nil, err
			}
		}
		return open(ctx, strings.Replace(b.my, "/app?", "/"+name+"?", 1))
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

func (b *bench) enterOursMySQL(name string, n int, opts outbox.Options, conns int) entrant {
	return entrant{name, true, n, b.onMySQL(func(ctx context.Context, dsn string) (contestant, error) {
		return openOurs(ctx, mysql.Open(dsn), opts, conns)
	})}
}
