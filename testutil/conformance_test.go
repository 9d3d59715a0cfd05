package testutil_test

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/testutil"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

func TestConformance(t *testing.T) {
	t.Run("sqlite", func(t *testing.T) { testutil.Conformance(t, testdb.SQLite) })
	t.Run("postgres", func(t *testing.T) { testutil.Conformance(t, testdb.Postgres) })
	t.Run("mariadb", func(t *testing.T) { testutil.Conformance(t, testdb.MariaDB) })
	t.Run("mysql", func(t *testing.T) { testutil.Conformance(t, testdb.MySQL) })
}

const brokenEnv = "OUTBOX_TEST_BROKEN"

// On a database that breaks a promise the suite fails, and says which.
func TestConformanceFails(t *testing.T) {
	cmd := exec.Command(os.Args[0], "-test.run=^TestConformanceOnABrokenDatabase$")
	cmd.Env = append(os.Environ(), brokenEnv+"=yes")
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Error("it passed")
	}
	for _, part := range []string{"L: it was committed, but is neither a task nor in history", "FAIL: TestConformanceOnABrokenDatabase/each_ending"} {
		if !strings.Contains(string(out), part) {
			t.Errorf("the child does not say %q:\n%.4000s", part, out)
		}
	}
}

func TestConformanceOnABrokenDatabase(t *testing.T) {
	if os.Getenv(brokenEnv) == "" {
		t.Skip("only as a child of TestConformanceFails")
	}
	testutil.Conformance(t, func(t testing.TB) *gorm.DB {
		db := testdb.SQLite(t)
		p := outbox.New(outbox.Options{})
		err := errors.Join(p.Initialize(db), p.Migrate(t.Context()), db.Exec(`CREATE TRIGGER forget AFTER INSERT ON outbox_history
WHEN new.status = 'error' BEGIN DELETE FROM outbox_history WHERE id = new.id; END`).Error)
		if err != nil {
			t.Fatal(err)
		}
		return db
	})
}
