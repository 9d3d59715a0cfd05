package outbox_test

import (
	"encoding/json"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// An application that imports the library compiles these, and nothing else: no driver above all.
var allowedDeps = []string{
	"github.com/gorm-outbox/outbox",
	"gorm.io/gorm", "github.com/jinzhu/inflection", "github.com/jinzhu/now", "golang.org/x/text", // GORM and its needs
	"github.com/robfig/cron/v3",
	"github.com/google/uuid",
}

// The tests of an application may use testutil beside any driver: it brings none.
func TestDependencies(t *testing.T) {
	for _, pkg := range []string{".", "./testutil", "./admin"} {
		met := map[string]bool{}
		list := goTool(t, "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", pkg)
		for dep := range strings.FieldsSeq(list) {
			allowed := ""
			for _, a := range allowedDeps {
				if dep == a || strings.HasPrefix(dep, a+"/") {
					allowed = a
				}
			}
			met[allowed] = true
			if allowed == "" || strings.HasSuffix(dep, "/testdb") {
				t.Errorf("%s needs %s", pkg, dep)
			}
		}
		for _, a := range allowedDeps {
			if !met[a] {
				t.Errorf("%s: %s is not imported any more", pkg, a)
			}
		}
	}
}

// The lowest versions with which the tests pass. An application that adds the library gets at least
// these, so a higher one here changes an application that asked for nothing: raise one only when
// the code needs it, and say why.
var requirements = map[string]string{
	"gorm.io/gorm":              "v1.25.11", // MapColumns, in a test
	"github.com/google/uuid":    "v1.6.0",   // version 7 in the order of creation
	"github.com/robfig/cron/v3": "v3.0.0",

	// Of pgnotify, testutil/testdb and the tests.
	"gorm.io/driver/postgres":        "v1.5.9",
	"github.com/jackc/pgx/v5":        "v5.5.5", // what the driver needs; the ones before 5.5.4 let SQL in (CVE-2024-27304)
	"gorm.io/driver/mysql":           "v1.5.6",
	"github.com/go-sql-driver/mysql": "v1.8.1", // 1.8.0 has a data race; with 1.7 no claim finds anything
	"gorm.io/driver/sqlite":          "v1.5.6", // New

	// What those need.
	"filippo.io/edwards25519":        "v1.1.0",
	"github.com/jackc/pgpassfile":    "v1.0.0",
	"github.com/jackc/pgservicefile": "v0.0.0-20221227161230-091c0ba34f0a",
	"github.com/jackc/puddle/v2":     "v2.2.1",
	"github.com/jinzhu/inflection":   "v1.0.0",
	"github.com/jinzhu/now":          "v1.1.5",
	"github.com/mattn/go-sqlite3":    "v1.14.22",
	"golang.org/x/crypto":            "v0.17.0",
	"golang.org/x/sync":              "v0.1.0",
	"golang.org/x/text":              "v0.14.0",
}

func TestRequirementsAreTheLowest(t *testing.T) {
	var mod struct {
		Go      string
		Require []struct{ Path, Version string }
	}
	if err := json.Unmarshal([]byte(goTool(t, "mod", "edit", "-json")), &mod); err != nil {
		t.Fatal(err)
	}
	if mod.Go != "1.25.0" {
		t.Errorf("go.mod asks for Go %s", mod.Go)
	}
	unmet := maps.Clone(requirements)
	for _, r := range mod.Require {
		if want := requirements[r.Path]; r.Version != want {
			t.Errorf("go.mod requires %s %s, want %q", r.Path, r.Version, want)
		}
		delete(unmet, r.Path)
	}
	if len(unmet) > 0 {
		t.Errorf("not required any more: %v", slices.Sorted(maps.Keys(unmet)))
	}
}

func goTool(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}
