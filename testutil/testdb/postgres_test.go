package testdb

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gorm.io/driver/postgres"
	"gorm.io/gorm"
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

// A session that holds one table and wants another makes the drop, which looks for deadlocks
// sooner, the victim of one.
func TestSchemaIsDroppedAfterADeadlock(t *testing.T) {
	t.Parallel()
	dsn := StartPostgres(t, "deadlock_timeout = 3s").DSN()
	db := open(t, postgres.Open(dsn))
	exec := func(db *gorm.DB, statement string) {
		t.Helper()
		if err := db.Exec(statement).Error; err != nil {
			t.Fatal(err)
		}
	}
	exec(db, "CREATE SCHEMA doomed")
	exec(db, "CREATE TABLE doomed.a (id int)")
	exec(db, "CREATE TABLE doomed.b (id int)")
	other := db.Begin()
	defer other.Rollback()
	exec(other, "SET LOCAL deadlock_timeout = '1min'")
	exec(other, "LOCK TABLE doomed.b")

	dropped := make(chan error, 1)
	go func() { dropped <- dropSchema(dsn, "doomed") }()
	for waits := 0; waits == 0; {
		select {
		case err := <-dropped:
			t.Fatalf("dropped while another has a table: %v", err)
		default:
		}
		if err := db.Raw("SELECT count(*) FROM pg_locks WHERE NOT granted").Row().Scan(&waits); err != nil {
			t.Fatal(err)
		}
	}
	exec(other, "LOCK TABLE doomed.a")
	other.Rollback()
	if err := <-dropped; err != nil {
		t.Error(err)
	}
}
