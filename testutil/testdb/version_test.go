package testdb_test

import (
	"os"
	"strings"
	"testing"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox/testutil/testdb"
)

// TestServerVersion tells the script which server the tests have met, and that it is the one they
// were meant for.
func TestServerVersion(t *testing.T) {
	want, ok := os.LookupEnv("OUTBOX_TEST_VERSION")
	if !ok {
		t.Skip("for scripts/test-versions.sh")
	}
	for _, server := range []struct {
		name, query string
		open        func(testing.TB) *gorm.DB
	}{
		{"postgres", "SHOW server_version", testdb.Postgres},
		{"mariadb", "SELECT version()", testdb.MariaDB},
		{"mysql", "SELECT version()", testdb.MySQL},
	} {
		t.Run(server.name, func(t *testing.T) {
			version := scalar[string](t, server.open(t), server.query)
			t.Log("server version:", version)
			if !strings.HasPrefix(version, want) {
				t.Errorf("version %s, want %s", version, want)
			}
		})
	}
}
