package dialect

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// mysql84 is what the statements may call or read. No test runs on MySQL 8.4, so a new
// name is looked up in its manual first.
var mysql84 = strings.Fields(`
	CAST COALESCE CONCAT COUNT DATABASE GET_LOCK IF JSON_TABLE LEAST LEFT MAX NULLIF RELEASE_LOCK
	SHA2 TIMESTAMPDIFF UTC_TIMESTAMP VALUES
	DATETIME VARCHAR
	@@AUTOCOMMIT @@CHARACTER_SET_CLIENT @@SQL_MODE @@SQL_SAFE_UPDATES`)

func TestMySQLStatementsUseWhatMySQL84Has(t *testing.T) {
	call := regexp.MustCompile(`@@\w+|\w+\(`)
	verb := regexp.MustCompile(`\b(SELECT|INSERT INTO|UPDATE|DELETE FROM) `)
	found := map[string]bool{}
	look := func(where, text string) {
		for _, name := range call.FindAllString(text, -1) {
			name = strings.ToUpper(strings.TrimSuffix(name, "("))
			if found[name] = true; !slices.Contains(mysql84, name) {
				t.Errorf("%s has %s, which nobody has looked up for MySQL 8.4", where, name)
			}
		}
	}
	d := newMySQL(plain(""), nil)
	for name, text := range statements(d) {
		look(name, text)
	}
	look("the schema", strings.Join(d.Schema(), "\n"))

	// Those that are not fields: of this dialect, and of the store for every database.
	literals := func(path string, n ast.Node, take func(text string) bool) {
		ast.Inspect(n, func(n ast.Node) bool {
			if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING && take(lit.Value) {
				look(path, lit.Value)
			}
			return true
		})
	}
	for _, pattern := range []string{"*.go", "../store/*.go"} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			if strings.HasSuffix(path, "_test.go") {
				continue
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			if pattern != "*.go" {
				literals(path, file, verb.MatchString)
				continue
			}
			for _, decl := range file.Decls {
				f, ok := decl.(*ast.FuncDecl)
				if strings.HasPrefix(path, "mysql") || ok && receiver(f) == "mysql" {
					literals(path, decl, func(string) bool { return true })
				}
			}
		}
	}
	for _, name := range mysql84 {
		if !found[name] {
			t.Errorf("%s is used no more", name)
		}
	}
}

// receiver is the type of a pointer method, empty for anything else.
func receiver(f *ast.FuncDecl) string {
	if f.Recv == nil {
		return ""
	}
	if p, ok := f.Recv.List[0].Type.(*ast.StarExpr); ok {
		return p.X.(*ast.Ident).Name
	}
	return ""
}
