package outbox_test

import (
	"os/exec"
	"strings"
	"testing"
)

// Whoever imports the library compiles these, and nothing else: no driver above all.
var allowedDeps = []string{
	"github.com/gorm-outbox/outbox",
	"gorm.io/gorm", "github.com/jinzhu/inflection", "github.com/jinzhu/now", "golang.org/x/text", // GORM and its needs
	"github.com/robfig/cron/v3",
	"github.com/google/uuid",
}

func TestDependencies(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", ".").CombinedOutput()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, out)
	}
	met := map[string]bool{}
	for dep := range strings.FieldsSeq(string(out)) {
		allowed := ""
		for _, a := range allowedDeps {
			if dep == a || strings.HasPrefix(dep, a+"/") {
				allowed = a
			}
		}
		if met[allowed] = true; allowed == "" {
			t.Errorf("the root imports %s", dep)
		}
	}
	for _, a := range allowedDeps {
		if !met[a] {
			t.Errorf("%s is not imported any more", a)
		}
	}
}
