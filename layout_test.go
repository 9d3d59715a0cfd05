package outbox_test

import (
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// layout says what the packages of the library may import of each other. They go in one direction,
// and none imports the root.
var layout = map[string][]string{
	"internal/args":        {"internal/text"},
	"internal/bridge":      {"internal/store"},
	"internal/commitwatch": {},
	"internal/dialect":     {},
	"internal/dispatch":    {"internal/dialect", "internal/guard", "internal/store", "internal/text"},
	"internal/guard":       {},
	"internal/store":       {"internal/dialect", "internal/guard", "internal/text"},
	"internal/text":        {},
}

// programs are not part of the library: they use it as an application does.
var programs = []string{"internal/dbtest", "internal/oracle", "internal/soak"}

func TestPackagesImportInOneDirection(t *testing.T) {
	const module = "github.com/gorm-outbox/outbox"
	dirs, err := os.ReadDir("internal")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		name := "internal/" + dir.Name()
		allowed, known := layout[name]
		if !known && !slices.Contains(programs, name) {
			t.Errorf("%s: say in layout what it may import", name)
		}
		if !known {
			continue
		}
		files, err := filepath.Glob(filepath.Join(name, "*.go"))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %d files, %v", name, len(files), err)
		}
		for _, path := range files {
			if strings.HasSuffix(path, "_test.go") {
				continue
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
			if err != nil {
				t.Fatal(err)
			}
			for _, i := range file.Imports {
				imported, err := strconv.Unquote(i.Path.Value)
				if err != nil {
					t.Fatal(err)
				}
				if ours, is := strings.CutPrefix(imported, module); is && !slices.Contains(allowed, strings.TrimPrefix(ours, "/")) {
					t.Errorf("%s imports %s", path, imported)
				}
			}
		}
	}
}

// The map for newcomers names files that are there.
func TestContributingNamesWhatExists(t *testing.T) {
	text, err := os.ReadFile("CONTRIBUTING.md")
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile(`\b[a-z_]+\.go\b|\binternal/[a-z]+\b`).FindAllString(string(text), -1)
	if len(names) < 20 {
		t.Fatalf("only %d names", len(names))
	}
	for _, name := range names {
		found := false
		for _, dir := range []string{".", "internal/dialect", "internal/dispatch", "internal/store"} {
			_, err := os.Stat(filepath.Join(dir, name))
			found = found || err == nil
		}
		if !found {
			t.Errorf("%s is not there", name)
		}
	}
}

// Statements that change a row of the library's tables stand in internal/store or, where databases
// write them differently, in internal/dialect.
func TestStatementsThatChangeRowsStandInTheStore(t *testing.T) {
	changes := regexp.MustCompile(`(?i)\b(INSERT\s+INTO|UPDATE|DELETE\s+FROM|REPLACE\s+INTO|TRUNCATE)\s+\{`)
	inside := 0
	for _, pattern := range []string{"*.go", "admin/*.go", "testutil/*.go", "testutil/*/*.go", "pgnotify/*.go", "internal/*/*.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range files {
			if strings.HasSuffix(path, "_test.go") {
				continue
			}
			source, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			found := changes.FindString(string(source))
			if dir := filepath.ToSlash(filepath.Dir(path)); dir == "internal/store" || dir == "internal/dialect" {
				inside += len(found)
			} else if found != "" {
				t.Errorf("%s: %s…", path, found)
			}
		}
	}
	if inside == 0 {
		t.Error("the pattern finds nothing")
	}
}
