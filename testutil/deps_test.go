package testutil_test

import (
	"os/exec"
	"strings"
	"testing"
)

// A driver that is linked in beside the application's of the same name panics at start-up.
func TestNoDriverIsLinked(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(out), "gorm.io/gorm\n") {
		t.Fatal("the list is of something else")
	}
	for pkg := range strings.Lines(string(out)) {
		for _, driver := range []string{"sqlite", "pgx", "go-sql-driver", "gorm.io/driver", "testdb"} {
			if strings.Contains(pkg, driver) && !strings.Contains(pkg, "outbox/internal/dialect") {
				t.Errorf("%s is linked in", strings.TrimSpace(pkg))
			}
		}
	}
}
