package testdb

import (
	"crypto/rand"
	"errors"
	"net/url"
	"os"
	"strings"
	"testing"

	"gorm.io/driver/mysql"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
)

// MySQL opens a new database on a MySQL server, as [MySQLDSN] describes it, with a logger that
// discards everything and at most 20 connections, which stay open. It is closed when the test ends.
func MySQL(t testing.TB) *gorm.DB {
	t.Helper()
	return openMySQL(t, MySQLDSN(t))
}

// MariaDB is [MySQL] on a MariaDB server, as [MariaDBDSN] describes it.
func MariaDB(t testing.TB) *gorm.DB {
	t.Helper()
	return openMySQL(t, MariaDBDSN(t))
}

// MySQLDSN names a new, empty database for github.com/go-sql-driver/mysql, with parseTime=true and
// loc=UTC. The database is dropped when the test ends.
//
// The server is the one in OUTBOX_TEST_MYSQL, a DSN whose user may create databases. If the
// variable is empty, the server is a throwaway one. It is started once per test binary from the
// program that [StartMySQL] finds, listens on 127.0.0.1 and ends with the test binary. Without a
// server the test is skipped, or fails when the environment variable CI is not empty.
func MySQLDSN(t testing.TB) string {
	t.Helper()
	return realMySQL.newDatabase(t)
}

// MariaDBDSN is [MySQLDSN] for a MariaDB server: the one in OUTBOX_TEST_MARIADB, or else a
// throwaway one from the programs that [StartMariaDB] finds.
func MariaDBDSN(t testing.TB) string {
	t.Helper()
	return mariaDB.newDatabase(t)
}

func openMySQL(t testing.TB, dsn string) *gorm.DB {
	t.Helper()
	db := open(t, mysql.Open(dsn))
	pool, err := db.DB()
	if err != nil {
		t.Fatalf("testdb: pool: %v", err)
	}
	pool.SetMaxOpenConns(20)
	pool.SetMaxIdleConns(20)
	return db
}

func (k *mysqlKind) newDatabase(t testing.TB) string {
	t.Helper()
	dsn := os.Getenv(k.env)
	if dsn == "" {
		server, err := k.shared()
		if err != nil {
			unavailable(t, err)
		}
		dsn = server.dsn("")
	}
	name := "outbox_test_" + strings.ToLower(rand.Text()[:16])
	if err := execMySQL(dsn, "CREATE DATABASE "+name+" CHARACTER SET utf8mb4"); err != nil {
		t.Fatalf("testdb: create database: %v", err)
	}
	t.Cleanup(func() {
		if err := execMySQL(dsn, "DROP DATABASE "+name); err != nil {
			t.Errorf("testdb: drop database: %v", err)
		}
	})
	address, params, _ := strings.Cut(dsn, "?")
	values, err := url.ParseQuery(params)
	if err != nil {
		t.Fatal("testdb: the DSN's parameters are not valid")
	}
	values.Set("charset", "utf8mb4")
	values.Set("parseTime", "true")
	values.Set("loc", "UTC")
	return address[:strings.LastIndexByte(address, '/')+1] + name + "?" + values.Encode()
}

// execMySQL runs one statement on a connection of its own.
func execMySQL(dsn, statement string) error {
	db, err := gorm.Open(mysql.Open(dsn), &gorm.Config{Logger: logger.Discard})
	if err != nil {
		return err
	}
	pool, err := db.DB()
	if err != nil {
		return err
	}
	return errors.Join(db.Exec(statement).Error, pool.Close())
}
