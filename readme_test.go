package outbox_test

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// What a fragment may use without saying where it comes from.
var snippetImports = map[string]string{
	"context": "context", "errors": "errors", "fmt": "fmt", "log": "log", "logger": "gorm.io/gorm/logger", "slog": "log/slog", "time": "time", "testing": "testing",
	"http": "net/http", "gorm": "gorm.io/gorm", "sqlite": "gorm.io/driver/sqlite", "postgres": "gorm.io/driver/postgres",
	"outbox":   "github.com/gorm-outbox/outbox",
	"admin":    "github.com/gorm-outbox/outbox/admin",
	"testutil": "github.com/gorm-outbox/outbox/testutil",
	"testdb":   "github.com/gorm-outbox/outbox/testutil/testdb",
	"pgnotify": "github.com/gorm-outbox/outbox/pgnotify",
}

const snippetContext = `package snippet

import (
	"context"
	"net/http"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/admin"
)

type Order struct {
	ID     uint64
	Status string
}

type User struct {
	Name     string
	Operator bool
}

var (
	ctx    context.Context
	db, tx *gorm.DB
	plugin *outbox.Plugin
	order  Order
	task   *outbox.TaskModel

	mux       *http.ServeMux
	authorize func(*http.Request, admin.Action) (admin.Actor, error)
	session   func(*http.Request) (User, bool)
)
`

// The Go code of the documents compiles. Nothing is written into the module: the compiler sees the
// snippets in an overlay.
func TestSnippetsCompile(t *testing.T) {
	documents, err := filepath.Glob("docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	module, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	overlay := map[string]string{}
	var packages []string
	add := func(pkg, name, text string) {
		real := filepath.Join(dir, fmt.Sprintf("%s_%s", pkg, name))
		if err := os.WriteFile(real, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		overlay[filepath.Join(module, "internal", pkg, name)] = real
	}
	for _, document := range append([]string{"README.md"}, documents...) {
		for _, s := range goBlocks(t, document) {
			pkg := fmt.Sprintf("snippet%d", len(packages))
			text, fragment, err := complete(s)
			if err != nil {
				t.Errorf("%s:%d: %v", document, s.line, err)
				continue
			}
			packages = append(packages, "./internal/"+pkg)
			if add(pkg, "snippet.go", text); fragment {
				add(pkg, "context.go", snippetContext)
			}
		}
	}
	if len(packages) < 4 {
		t.Fatalf("only %d snippets were found", len(packages))
	}
	config := filepath.Join(dir, "overlay.json")
	b, err := json.Marshal(map[string]any{"Replace": overlay})
	if err == nil {
		err = os.WriteFile(config, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	// Without -o: with a directory go build compiles the main packages and leaves the others out.
	args := append([]string{"build", "-overlay", config}, packages...)
	if out, err := exec.CommandContext(t.Context(), "go", args...).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

type snippet struct {
	document string
	line     int // of its first line
	text     string
}

func goBlocks(t *testing.T, document string) []snippet {
	t.Helper()
	b, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	var found []snippet
	inside := false
	for i, line := range strings.SplitAfter(string(b), "\n") {
		switch {
		case !inside && strings.TrimSpace(line) == "```go":
			found, inside = append(found, snippet{document, i + 2, ""}), true
		case inside && strings.TrimSpace(line) == "```":
			inside = false
		case inside:
			found[len(found)-1].text += line
		}
	}
	if inside {
		t.Errorf("%s:%d: the block does not end", document, found[len(found)-1].line)
	}
	return found
}

// complete makes a file of a snippet: of a whole one, of declarations or of statements. A //line
// directive lets the compiler's messages name the document's line.
func complete(s snippet) (text string, fragment bool, err error) {
	line := fmt.Sprintf("//line %s:%d\n", s.document, s.line)
	if _, err := parser.ParseFile(token.NewFileSet(), "", s.text, parser.PackageClauseOnly); err == nil {
		return line + s.text, false, nil
	}
	for _, wrap := range []struct{ before, after string }{
		{"", ""},
		{"func _() error {\n", "\nreturn nil\n}\n"},
	} {
		body := wrap.before + line + s.text + wrap.after
		var file *ast.File
		if file, err = parser.ParseFile(token.NewFileSet(), "", "package snippet\n"+body, 0); err != nil {
			continue
		}
		used := map[string]bool{}
		ast.Inspect(file, func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok {
				if x, ok := sel.X.(*ast.Ident); ok && x.Obj == nil && snippetImports[x.Name] != "" {
					used[snippetImports[x.Name]] = true
				}
			}
			return true
		})
		head := "package snippet\n\n"
		for _, path := range slices.Sorted(maps.Keys(used)) {
			head += fmt.Sprintf("import %q\n", path)
		}
		if wrap.before != "" { // a variable that only receives a value is not used, to the compiler
			use := ""
			for _, statement := range file.Decls[0].(*ast.FuncDecl).Body.List {
				if define, ok := statement.(*ast.AssignStmt); ok && define.Tok == token.DEFINE {
					for _, x := range define.Lhs {
						use += "\n_ = " + x.(*ast.Ident).Name
					}
				}
			}
			body = strings.Replace(body, "\nreturn nil\n}\n", use+"\nreturn nil\n}\n", 1)
		}
		return head + body, true, nil
	}
	return "", true, err
}

// The documents name the tests that hold a promise; those tests are there.
func TestDocumentsNameTestsThatExist(t *testing.T) {
	var sources strings.Builder
	for _, pattern := range []string{"*_test.go", "*/*_test.go", "*/*/*_test.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			sources.Write(b)
		}
	}
	documents, err := filepath.Glob("docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	named := 0
	for _, document := range documents {
		b, err := os.ReadFile(document)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range regexp.MustCompile("`(Test[A-Z][A-Za-z0-9]*)`").FindAllStringSubmatch(string(b), -1) {
			if named++; !strings.Contains(sources.String(), "\nfunc "+name[1]+"(t *testing.T)") {
				t.Errorf("%s: there is no %s", document, name[1])
			}
		}
	}
	if named < 20 {
		t.Errorf("only %d tests are named", named)
	}
}

// Every fault has its row, which names a test or says that there is none yet.
func TestEveryFaultHasItsRow(t *testing.T) {
	b, err := os.ReadFile("docs/faults.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]string{}
	for line := range strings.Lines(string(b)) {
		if m := regexp.MustCompile(`^\| (\d+) \|`).FindStringSubmatch(line); m != nil {
			rows[m[1]] = line
		}
	}
	for n := 1; n <= 36; n++ {
		row := rows[fmt.Sprint(n)]
		if !strings.Contains(row, "`Test") && !strings.Contains(row, "| not yet |") || strings.Count(row, "|") != 6 {
			t.Errorf("fault %d: %q", n, row)
		}
	}
	if len(rows) != 36 {
		t.Errorf("%d rows", len(rows))
	}
}
