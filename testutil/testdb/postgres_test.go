package testdb

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestWithParam(t *testing.T) {
	for _, tt := range []struct{ name, dsn, want string }{
		{"URL", "postgres://me@db/app", "postgres://me@db/app?search_path=s"},
		{"URL with parameters", "postgresql://db/app?sslmode=disable", "postgresql://db/app?search_path=s&sslmode=disable"},
		{"URL that sets it", "postgres://db/app?search_path=other", "postgres://db/app?search_path=s"},
		{"keywords", "host=db dbname=app", "host=db dbname=app search_path=s"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := withParam(tt.dsn, "search_path", "s")
			if err != nil || got != tt.want {
				t.Errorf("got %q, %v; want %q", got, err, tt.want)
			}
		})
	}

	t.Run("error does not tell the password", func(t *testing.T) {
		_, err := withParam("postgres://me:secret@db:port/app", "search_path", "s")
		if err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("err = %v", err)
		}
	})
}

func TestNewestPrograms(t *testing.T) {
	root := t.TempDir()
	install := func(version string, programs ...string) {
		bin := filepath.Join(root, version, "bin")
		if err := os.MkdirAll(bin, 0o700); err != nil {
			t.Fatal(err)
		}
		for _, p := range programs {
			if err := os.WriteFile(filepath.Join(bin, p), nil, 0o700); err != nil {
				t.Fatal(err)
			}
		}
	}
	install("18", "pg_dump") // the client alone
	if got, err := newestPrograms(root + "/*/bin"); err != errNoPostgres {
		t.Errorf("with a client only: %q, %v; want %v", got, err, errNoPostgres)
	}
	for _, v := range []string{"15", "9.6", "16"} {
		install(v, "initdb", "pg_ctl", "postgres")
	}
	if got, err := newestPrograms(root + "/*/bin"); err != nil || got != filepath.Join(root, "16", "bin") {
		t.Errorf("got %q, %v; want 16's", got, err)
	}
}
