package testdb

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"

	"gorm.io/driver/postgres"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
)

// postgresEnv is the name of the variable with the DSN of a server to use instead of a throwaway
// cluster.
const postgresEnv = "OUTBOX_TEST_POSTGRES"

// sharedCluster is started by the first test that needs it. It ends with the test binary, in
// whatever way the test binary ends.
var sharedCluster = sync.OnceValues(func() (*Cluster, error) { return startCluster(nil) })

// PostgresDSN names a new, empty schema for pgx: the DSN sets search_path on every connection, also
// in other processes. The schema is dropped when the test ends. Close your connections before: a
// lock that is still held then fails the test after ten seconds.
//
// The server is the one in OUTBOX_TEST_POSTGRES, a DSN whose user may create schemas. If the
// variable is empty, the server is a throwaway cluster. It is started once per test binary from
// installed programs, listens on 127.0.0.1 and ends with the test binary. Without a server the test
// is skipped, or fails when the environment variable CI is not empty.
func PostgresDSN(t testing.TB) string {
	t.Helper()
	dsn := os.Getenv(postgresEnv)
	if dsn == "" {
		c, err := sharedCluster()
		if err != nil {
			unavailable(t, err)
		}
		dsn = c.DSN()
	}
	schema := "outbox_test_" + strings.ToLower(rand.Text()[:16])
	fresh, err := withParam(dsn, "search_path", schema)
	if err != nil {
		t.Fatalf("testdb: %v", err)
	}
	if err := execPostgres(dsn, "CREATE SCHEMA "+schema); err != nil {
		t.Fatalf("testdb: create schema: %v", err)
	}
	t.Cleanup(func() {
		if err := dropSchema(dsn, schema); err != nil {
			t.Errorf("testdb: drop schema: %v", err)
		}
	})
	return fresh
}

// dropSchema tries again after a deadlock: the session of a client that has ended, such as a killed
// process, may still be executing its last statement.
func dropSchema(dsn, schema string) error {
	var err error
	for range 5 {
		err = execPostgres(dsn, "DROP SCHEMA "+schema+" CASCADE")
		var state interface{ SQLState() string }
		if !errors.As(err, &state) || state.SQLState() != "40P01" {
			break
		}
	}
	return err
}

// execPostgres runs one statement on a connection of its own. A pool for this would outlive the
// test, and tests that count goroutines would report it as a leak.
func execPostgres(dsn, statement string) error {
	dsn, err := withParam(dsn, "lock_timeout", "10000")
	if err != nil {
		return err
	}
	db, err := gorm.Open(postgres.Open(dsn), &gorm.Config{Logger: logger.Discard})
	if err != nil {
		return err
	}
	pool, err := db.DB()
	if err != nil {
		return err
	}
	return errors.Join(db.Exec(statement).Error, pool.Close())
}

// withParam sets a runtime parameter in a DSN of either form, a URL or keywords.
func withParam(dsn, name, value string) (string, error) {
	if !strings.HasPrefix(dsn, "postgres://") && !strings.HasPrefix(dsn, "postgresql://") {
		return fmt.Sprintf("%s %s=%s", dsn, name, value), nil
	}
	u, err := url.Parse(dsn)
	if err != nil {
		// The parser's own error would print the password.
		return "", errors.New("parse DSN: not a valid URL")
	}
	q := u.Query()
	q.Set(name, value)
	u.RawQuery = q.Encode()
	return u.String(), nil
}

// unavailable ends a test if no server is available. It skips the test only on a machine without
// PostgreSQL: a server that is installed but does not start is a defect.
func unavailable(t testing.TB, err error) {
	t.Helper()
	if errors.Is(err, errNotInstalled) && os.Getenv("CI") == "" {
		t.Skipf("testdb: %v", err)
	}
	t.Fatalf("testdb: %v", err)
}
