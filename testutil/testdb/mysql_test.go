//go:build unix

package testdb_test

import (
	"path/filepath"
	"strings"
	"testing"

	"gorm.io/driver/mysql"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-outbox/outbox/testutil/testdb"
)

const databaseExists = "SELECT count(*) FROM information_schema.schemata WHERE schema_name = ?"

// servers that speak MySQL's protocol.
var mysqlServers = []struct {
	name  string
	open  func(testing.TB) *gorm.DB
	dsn   func(testing.TB) string
	start func(testing.TB, ...string) *testdb.MySQLServer
}{
	{"mariadb", testdb.MariaDB, testdb.MariaDBDSN, testdb.StartMariaDB},
	{"mysql", testdb.MySQL, testdb.MySQLDSN, testdb.StartMySQL},
}

func TestMySQL(t *testing.T) {
	for _, s := range mysqlServers {
		t.Run(s.name, func(t *testing.T) { testMySQL(t, s.open) })
	}
}

func TestWhichServerIsWhich(t *testing.T) {
	for _, s := range mysqlServers {
		version := scalar[string](t, s.open(t), "SELECT VERSION()")
		if strings.Contains(version, "MariaDB") != (s.name == "mariadb") {
			t.Errorf("%s is %s", s.name, version)
		}
	}
}

func testMySQL(t *testing.T, open func(testing.TB) *gorm.DB) {
	t.Run("has its database on every connection", func(t *testing.T) {
		pool := pool(t, open(t))
		want := ""
		for range 3 { // all held, so they are three
			conn, err := pool.Conn(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			var got string
			if err := conn.QueryRowContext(t.Context(), "SELECT DATABASE()").Scan(&got); err != nil {
				t.Fatal(err)
			}
			if want == "" {
				want = got
			}
			if !strings.HasPrefix(got, "outbox_test_") || got != want {
				t.Errorf("DATABASE() = %s, want %s", got, want)
			}
		}
	})

	t.Run("shares nothing with the next one", func(t *testing.T) {
		mustExec(t, open(t), "CREATE TABLE only_here (id int)")
		if open(t).Migrator().HasTable("only_here") {
			t.Error("the second database has the first one's table")
		}
	})

	t.Run("is gone after the test", func(t *testing.T) {
		name := ""
		t.Run("the test", func(t *testing.T) {
			db := open(t)
			mustExec(t, db, "CREATE TABLE orders (id int)")
			name = scalar[string](t, db, "SELECT DATABASE()")
		})
		if n := scalar[int](t, open(t), databaseExists, name); name == "" || n != 0 {
			t.Errorf("the database %q is still there", name)
		}
	})
}

func TestMySQLDSN(t *testing.T) {
	for _, s := range mysqlServers {
		t.Run(s.name, func(t *testing.T) { testMySQLDSN(t, s.dsn(t)) })
	}
}

func testMySQLDSN(t *testing.T, dsn string) {
	first, second := openDB(t, mysql.Open(dsn)), openDB(t, mysql.Open(dsn))
	mustExec(t, first, "CREATE TABLE shared (id int)")

	t.Run("names one database for every process", func(t *testing.T) {
		if !second.Migrator().HasTable("shared") {
			t.Error("the second connection does not see the first one's table")
		}
	})

	t.Run("stores every character, and times in UTC", func(t *testing.T) {
		for _, part := range []string{"charset=utf8mb4", "parseTime=true", "loc=UTC"} {
			if !strings.Contains(dsn, part) {
				t.Errorf("the DSN lacks %s", part)
			}
		}
		if got := scalar[string](t, first, "SELECT @@character_set_database"); got != "utf8mb4" {
			t.Errorf("the database's character set is %s", got)
		}
	})
}

func TestMySQLServer(t *testing.T) {
	t.Parallel()
	for _, kind := range mysqlServers {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			testMySQLServer(t, kind.start(t, "--innodb-flush-log-at-trx-commit=2", "--max-connections=77"))
		})
	}
}

func testMySQLServer(t *testing.T, s *testdb.MySQLServer) {
	db := openDB(t, mysql.Open(s.DSN()))

	t.Run("settings are in force", func(t *testing.T) {
		for name, want := range map[string]string{
			"innodb_flush_log_at_trx_commit": "2", "max_connections": "77", // the test's
			"time_zone": "+05:30", "character_set_server": "utf8mb4", // the helper's
		} {
			if got := scalar[string](t, db, "SELECT @@"+name); got != want {
				t.Errorf("%s = %s, want %s", name, got, want)
			}
		}
	})

	t.Run("temporary tables are out of another server's reach", func(t *testing.T) {
		tmp, data := scalar[string](t, db, "SELECT @@tmpdir"), scalar[string](t, db, "SELECT @@datadir")
		if filepath.Dir(tmp) != filepath.Dir(filepath.Clean(data)) {
			t.Errorf("they are in %s, the data in %s", tmp, data)
		}
	})

	t.Run("strangers are turned away", func(t *testing.T) {
		user, rest, _ := strings.Cut(s.DSN(), ":")
		_, rest, _ = strings.Cut(rest, "@")
		if _, err := gorm.Open(mysql.Open(user+":guess@"+rest), &gorm.Config{Logger: logger.Discard}); err == nil {
			t.Error("the server took a wrong password")
		}
	})

	t.Run("committed rows outlive a crash", func(t *testing.T) {
		mustExec(t, db, "CREATE TABLE kept (id int)")
		mustExec(t, db, "INSERT INTO kept VALUES (7)")
		s.Crash()
		eventually(t, "the server is down", func() bool { return !listens(t, s.DSN()) })
		s.Start()
		if got := scalar[int](t, openDB(t, mysql.Open(s.DSN())), "SELECT id FROM kept"); got != 7 {
			t.Errorf("the row is %d", got)
		}
	})
}
