package outbox_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"gorm.io/driver/mysql"
	"gorm.io/driver/postgres"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
)

var models = []any{&outbox.TaskModel{}, &outbox.HistoryModel{}, &outbox.ProcessModel{}, &outbox.AuditModel{}}

// sharing is another *gorm.DB on the same pool, as a second process would have.
func sharing(t *testing.T, db *gorm.DB) *gorm.DB {
	t.Helper()
	pool, err := db.DB()
	if err != nil {
		t.Fatal(err)
	}
	other, err := gorm.Open(map[string]gorm.Dialector{"sqlite": sqlite.Dialector{Conn: pool}, "postgres": postgres.New(postgres.Config{Conn: pool}),
		"mysql": mysql.New(mysql.Config{Conn: pool})}[db.Name()], &gorm.Config{Logger: logger.Discard})
	if err != nil {
		t.Fatal(err)
	}
	return other
}

// refuses wants Migrate, Run and RunDue to refuse the tables, each naming what differs, and to
// change nothing.
func refuses(t *testing.T, db *gorm.DB, says ...string) {
	t.Helper()
	p := outbox.New(quiet())
	if err := sharing(t, db).Use(p); err != nil {
		t.Fatal(err)
	}
	before := catalog(t, db)
	_, due := p.RunDue(t.Context())
	for what, err := range map[string]error{"Migrate": p.Migrate(t.Context()), "Run": p.Run(t.Context()), "RunDue": due} {
		if !errors.Is(err, outbox.ErrSchema) {
			t.Errorf("%s: got %v", what, err)
			continue
		}
		for _, s := range says {
			if !strings.Contains(err.Error(), s) {
				t.Errorf("%s does not say %q: %v", what, s, err)
			}
		}
	}
	if after := catalog(t, db); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

// AutoMigrate of the models before Migrate leaves out what GORM's tags cannot say.
func TestAutoMigrateBeforeMigrate(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		if err := db.AutoMigrate(models...); err != nil {
			t.Fatal(err)
		}
		if db.Name() != "sqlite" {
			says := map[string]string{"postgres": `outbox_tasks.id needs COLLATE "C"`, "mysql": "outbox_tasks.key has the collation"}
			refuses(t, db, says[db.Name()], "Schema(")
			return
		}
		p, ran := shop(t, db, outbox.Options{}) // there the indexes are all that is missing
		dbtest.Create(t, db, cancelOrder, nil, outbox.Key("k"))
		if n, err := p.RunDue(t.Context()); n != 1 || err != nil {
			t.Fatalf("%d ran, %v", n, err)
		}
		dbtest.Receive(t, ran)
		var n int64
		if err := db.Raw("SELECT count(*) FROM sqlite_master WHERE type = 'index' AND sql LIKE '%pending%'").Scan(&n).Error; err != nil || n != 1 {
			t.Errorf("%d indexes for the claim, %v", n, err)
		}
	})
}

func TestMissingIndexesAndTables(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		p, ran := shop(t, db, outbox.Options{})
		whole := catalog(t, db)
		on := map[string]string{"mysql": " ON outbox_tasks"}[db.Name()]
		for what, statement := range map[string]string{
			"idx_outbox_tasks_claim": "DROP INDEX idx_outbox_tasks_claim" + on, "idx_outbox_tasks_key": "DROP INDEX idx_outbox_tasks_key" + on,
			"outbox_audit": "DROP TABLE outbox_audit", "outbox_schema": "DROP TABLE outbox_schema",
		} {
			mustRun(t, db, statement)
			other := outbox.New(quiet())
			if err := sharing(t, db).Use(other); err != nil {
				t.Fatal(err)
			}
			if _, err := other.RunDue(t.Context()); what == "outbox_audit" {
				if err != nil {
					t.Errorf("%s, of which a dispatcher needs none: RunDue: %v", what, err)
				}
			} else if !errors.Is(err, outbox.ErrSchema) || !strings.Contains(err.Error(), what) || !strings.Contains(err.Error(), "Migrate") {
				t.Errorf("%s: RunDue: %v", what, err)
			}
			if err := other.Migrate(t.Context()); err != nil {
				t.Errorf("%s: Migrate: %v", what, err)
			}
			if _, err := other.RunDue(t.Context()); err != nil {
				t.Errorf("%s: RunDue after Migrate: %v", what, err)
			}
		}
		if now := catalog(t, db); now != whole {
			t.Errorf("before:\n%s\nafter:\n%s", whole, now)
		}
		dbtest.Create(t, db, cancelOrder, nil)
		if n, err := p.RunDue(t.Context()); n != 1 || err != nil {
			t.Fatalf("%d ran, %v", n, err)
		}
		dbtest.Receive(t, ran)
	})
}

func TestOtherTables(t *testing.T) {
	for _, tt := range []struct {
		name, says string
		statements map[string]string
	}{
		{"a column is gone", "outbox_tasks has no column meta", map[string]string{"": "ALTER TABLE outbox_tasks DROP COLUMN meta"}},
		{"jsonb", "outbox_tasks.args is of type jsonb", map[string]string{"postgres": "ALTER TABLE outbox_tasks ALTER COLUMN args TYPE jsonb"}},
		{"json", "outbox_tasks.args", map[string]string{"mysql": "ALTER TABLE outbox_tasks MODIFY args text NOT NULL"}},
		{"a narrow text", "outbox_tasks.func is too small", map[string]string{"postgres": "ALTER TABLE outbox_tasks ALTER COLUMN func TYPE varchar(100)",
			"mysql": "ALTER TABLE outbox_tasks MODIFY func varchar(100) CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin NOT NULL"}},
		{"a key that ignores case", "outbox_tasks.key has the collation", map[string]string{
			"mysql": "ALTER TABLE outbox_tasks MODIFY `key` varchar(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci"}},
		{"a time without a zone", "outbox_tasks.run_at is of type timestamp", map[string]string{
			"postgres": "ALTER TABLE outbox_tasks ALTER COLUMN run_at TYPE timestamp", "mysql": "ALTER TABLE outbox_tasks MODIFY run_at timestamp(6) NOT NULL"}},
		{"whole seconds", "outbox_tasks.run_at is too small", map[string]string{
			"postgres": "ALTER TABLE outbox_tasks ALTER COLUMN run_at TYPE timestamptz(0)", "mysql": "ALTER TABLE outbox_tasks MODIFY run_at datetime NOT NULL"}},
		{"must be given", "outbox_tasks.key must not be NULL", map[string]string{"postgres": "ALTER TABLE outbox_tasks ALTER COLUMN key SET NOT NULL",
			"mysql": "ALTER TABLE outbox_tasks MODIFY `key` varchar(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin NOT NULL"}},
		{"a column of somebody else must be given", "outbox_tasks.tenant", map[string]string{
			"postgres": "ALTER TABLE outbox_tasks ADD COLUMN tenant text NOT NULL", "mysql": "ALTER TABLE outbox_tasks ADD COLUMN tenant int NOT NULL"}},
		{"another index of that name", "idx_outbox_tasks_claim is not INDEX", map[string]string{
			"":      "DROP INDEX idx_outbox_tasks_claim; CREATE INDEX idx_outbox_tasks_claim ON outbox_tasks (queue)",
			"mysql": "DROP INDEX idx_outbox_tasks_claim ON outbox_tasks; CREATE INDEX idx_outbox_tasks_claim ON outbox_tasks (queue)"}},
		{"an index of other rows", "idx_outbox_tasks_claim is not INDEX", map[string]string{
			"sqlite":   "DROP INDEX idx_outbox_tasks_claim; CREATE INDEX idx_outbox_tasks_claim ON outbox_tasks (queue, priority, run_at) WHERE state = 'parked'",
			"postgres": "DROP INDEX idx_outbox_tasks_claim; CREATE INDEX idx_outbox_tasks_claim ON outbox_tasks (queue, priority, run_at, id) WHERE state = 'parked'"}},
		{"keys are not unique", "idx_outbox_tasks_key is not UNIQUE", map[string]string{
			"":      "DROP INDEX idx_outbox_tasks_key; CREATE INDEX idx_outbox_tasks_key ON outbox_tasks (key) WHERE key IS NOT NULL",
			"mysql": "DROP INDEX idx_outbox_tasks_key ON outbox_tasks; CREATE INDEX idx_outbox_tasks_key ON outbox_tasks (`key`)"}},
		{"an index that ignores case", "idx_outbox_tasks_key is not UNIQUE", map[string]string{
			"sqlite": "DROP INDEX idx_outbox_tasks_key; CREATE UNIQUE INDEX idx_outbox_tasks_key ON outbox_tasks (key COLLATE NOCASE) WHERE key IS NOT NULL"}},
		{"no primary key", "outbox_history has no primary key of id", map[string]string{
			"postgres": "ALTER TABLE outbox_history DROP CONSTRAINT outbox_history_pkey", "mysql": "ALTER TABLE outbox_history DROP PRIMARY KEY"}},
		{"not transactional", "outbox_tasks is not a table of InnoDB", map[string]string{"mysql": "DROP INDEX idx_outbox_tasks_key ON outbox_tasks; ALTER TABLE outbox_tasks ENGINE=MyISAM"}},
		{"a view", "outbox_tasks is not a table", map[string]string{
			"postgres": "ALTER TABLE outbox_tasks RENAME TO t; CREATE VIEW outbox_tasks AS SELECT * FROM t"}},
		{"tasks in partitions", "outbox_tasks is partitioned", map[string]string{
			"postgres": "ALTER TABLE outbox_tasks RENAME TO t; CREATE TABLE outbox_tasks (LIKE t) PARTITION BY LIST (queue);" +
				"CREATE TABLE p PARTITION OF outbox_tasks DEFAULT"}},
		{"tasks with heirs", "outbox_tasks is partitioned", map[string]string{"postgres": "CREATE TABLE p () INHERITS (outbox_tasks)"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
				statements, ok := tt.statements[db.Name()]
				if !ok {
					statements, ok = tt.statements[""]
				}
				if !ok {
					t.Skip("cannot be had there")
				}
				shop(t, db, outbox.Options{})
				if isMySQL(t, db) {
					statements = strings.ReplaceAll(statements, "utf8mb4_nopad_bin", "utf8mb4_0900_bin")
				}
				mustRun(t, db, strings.Split(statements, ";")...)
				refuses(t, db, tt.says)
			})
		})
	}
}

// isMySQL tells MySQL from MariaDB.
func isMySQL(t *testing.T, db *gorm.DB) bool {
	t.Helper()
	if db.Name() != "mysql" {
		return false
	}
	var version string
	if err := db.Raw("SELECT version()").Scan(&version).Error; err != nil {
		t.Fatal(err)
	}
	return !strings.Contains(version, "MariaDB")
}

// Wider columns are somebody's right.
func TestWiderColumns(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		p, _ := shop(t, db, outbox.Options{})
		switch db.Name() {
		case "postgres":
			mustRun(t, db, "ALTER TABLE outbox_tasks ALTER COLUMN func TYPE text", "ALTER TABLE outbox_tasks ALTER COLUMN attempt TYPE bigint",
				"DROP INDEX idx_outbox_tasks_key", "CREATE UNIQUE INDEX idx_outbox_tasks_key ON outbox_tasks (key)")
		case "mysql":
			mustRun(t, db, "ALTER TABLE outbox_tasks MODIFY attempt bigint NOT NULL")
		}
		if err := p.Migrate(t.Context()); err != nil {
			t.Error(err)
		}
		if _, err := p.RunDue(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// Applications empty all of their tables between tests.
func TestAllTablesEmptied(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		_, ran := shop(t, db, outbox.Options{})
		for _, table := range []string{"outbox_tasks", "outbox_history", "outbox_processes", "outbox_audit", "outbox_schema"} {
			mustRun(t, db, map[bool]string{false: "TRUNCATE TABLE ", true: "DELETE FROM "}[db.Name() == "sqlite"]+table)
		}
		p := db.Plugins["outbox"].(*outbox.Plugin)
		dbtest.Create(t, db, cancelOrder, nil)
		if n, err := p.RunDue(t.Context()); n != 1 || err != nil {
			t.Fatalf("%d ran, %v", n, err)
		}
		dbtest.Receive(t, ran)
		if err := p.Migrate(t.Context()); err != nil {
			t.Fatal(err)
		}
		var n int64
		if err := db.Table("outbox_schema").Count(&n).Error; err != nil || n != 1 {
			t.Errorf("%d versions, %v", n, err)
		}
	})
}

// An export of all tables can be imported into tables that Migrate has made.
func TestVersionRowImportedOnceMore(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		p, _ := shop(t, db, outbox.Options{})
		if err := db.Exec("INSERT INTO outbox_schema (version, migrated_at) VALUES (?, ?)", 1, time.Now().UTC().Add(-time.Hour)).Error; err != nil {
			t.Fatal(err)
		}
		if err := p.Migrate(t.Context()); err != nil {
			t.Error(err)
		}
		if _, err := p.RunDue(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// History in partitions by month: the way to drop a month at once.
func TestHistoryInPartitions(t *testing.T) {
	for _, d := range dbtest.Databases {
		if d.Name != "postgres" {
			continue
		}
		db := d.Open(t)
		mustRun(t, db, partitions(t)...)
		p, ran := shop(t, db, outbox.Options{RetainSuccess: time.Hour})
		p.Handle("a.b", func(context.Context, *gorm.DB) error { return nil })
		if err := db.Transaction(func(tx *gorm.DB) error { return useEverything(t, tx) }); err != nil {
			t.Fatal(err)
		}
		task, inTx := dbtest.Create(t, db, cancelOrder, nil), dbtest.Create(t, db, "a.b", nil)
		if n, err := p.RunDue(t.Context()); n != 2 || err != nil {
			t.Fatalf("%d ran, %v", n, err)
		}
		dbtest.Receive(t, ran)
		for _, id := range []string{task.ID, inTx.ID} {
			if past := dbtest.Ended(t, db, id); past.Status != outbox.StatusSuccess {
				t.Errorf("ended as %+v", past)
			}
		}
		if _, err := outbox.Rerun(db, task.ID); err != nil {
			t.Error(err)
		}
		if err := p.Migrate(t.Context()); err != nil {
			t.Error(err)
		}
		// The first row of each partition has the same place in it: only what is old may go.
		mustRun(t, db, "DELETE FROM outbox_history")
		mustRun(t, db, "VACUUM FULL outbox_history")
		for _, at := range []string{"2001-01-05", "2002-01-05"} {
			mustRun(t, db, `INSERT INTO outbox_history SELECT 'old-' || n, 'a.b', '{}', NULL, 'default', 2, '`+at+`', 1, 0, 0, 1, 0, 1, NULL, NULL, NULL, NULL, '`+at+`', NULL,
				'success', '', NULL, NULL, '`+at+`' FROM generate_series(1, 3) n`)
		}
		mustRun(t, db, `INSERT INTO outbox_history SELECT 'new-' || n, 'a.b', '{}', NULL, 'default', 2, now(), 1, 0, 0, 1, 0, 1, NULL, NULL, NULL, NULL, now(), NULL,
			'success', '', NULL, NULL, now() FROM generate_series(1, 3) n`)
		statements, pool := p.Statements()
		if n, err := statements.Prune(t.Context(), pool, false, time.Hour, 100); err != nil || n != 6 {
			t.Errorf("pruned %d of 6 rows, %v", n, err)
		}
		if n := dbtest.Count(t, db, &outbox.HistoryModel{}); n != 3 {
			t.Errorf("%d of 3 new rows are left", n)
		}
	}
}

// partitions are the statements of docs/operations.md, for months of this test.
func partitions(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile("docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, sql, ok := strings.Cut(string(text), "```sql\n-- history in partitions\n")
	if !ok {
		t.Fatal("docs/operations.md has no such statements")
	}
	sql, _, _ = strings.Cut(sql, "```")
	var list []string
	for s := range strings.SplitSeq(sql, ";\n") {
		if s = strings.TrimSpace(s); s != "" {
			list = append(list, s)
		}
	}
	return append(list, "CREATE TABLE outbox_history_2001 PARTITION OF outbox_history FOR VALUES FROM ('2001-01-01') TO ('2002-01-01')")
}

// The rights that docs/security.md names are enough to dispatch.
func TestRightsOfADispatcher(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		if db.Name() == "sqlite" {
			t.Skip("has no users")
		}
		_, _ = shop(t, db, outbox.Options{})
		role := "h" + strings.ToLower(rand.Text()[:12])
		var lead string
		switch db.Name() {
		case "postgres":
			var schema string
			if err := db.Raw("SELECT current_schema()").Scan(&schema).Error; err != nil {
				t.Fatal(err)
			}
			mustRun(t, db, "CREATE ROLE "+role, "GRANT USAGE ON SCHEMA "+schema+" TO "+role)
			t.Cleanup(func() { mustRun(t, db, "DROP OWNED BY "+role, "DROP ROLE "+role) })
			lead = "SET ROLE " + role
		default:
			mustRun(t, db, "CREATE ROLE "+role)
			t.Cleanup(func() { mustRun(t, db, "DROP ROLE "+role) })
		}
		for table, rights := range map[string]string{"outbox_tasks": "SELECT, INSERT, UPDATE, DELETE", "outbox_processes": "SELECT, INSERT, UPDATE, DELETE",
			"outbox_history": "SELECT, INSERT, UPDATE, DELETE", "outbox_schema": "SELECT"} {
			if db.Name() == "postgres" && table == "outbox_history" {
				rights = strings.Replace(rights, "UPDATE, DELETE", "UPDATE (rerun_id), DELETE", 1)
			}
			mustRun(t, db, "GRANT "+rights+" ON "+table+" TO "+role)
		}
		var other *gorm.DB
		if lead != "" {
			other = sharing(t, db)
			pool, err := db.DB()
			if err != nil {
				t.Fatal(err)
			}
			pool.SetMaxOpenConns(1)
			mustRun(t, db, lead)
			defer mustRun(t, db, "RESET ROLE")
		} else {
			other = asUser(t, db, role)
		}
		p := outbox.New(quiet())
		ran := make(chan struct{}, 1)
		p.Handle("a.b", func(context.Context) error { ran <- struct{}{}; return nil })
		if err := other.Use(p); err != nil {
			t.Fatal(err)
		}
		dbtest.Create(t, other, "a.b", nil)
		if n, err := p.RunDue(t.Context()); n != 1 || err != nil {
			t.Fatalf("%d ran, %v", n, err)
		}
		dbtest.Receive(t, ran)
	})
}

// asUser opens the database of MySQL or MariaDB as a user who has nothing but a role.
func asUser(t *testing.T, db *gorm.DB, role string) *gorm.DB {
	t.Helper()
	var address struct {
		Port int
		Name string
	}
	if err := db.Raw("SELECT @@port AS port, DATABASE() AS name").Scan(&address).Error; err != nil {
		t.Fatal(err)
	}
	user := role + "_user"
	mustRun(t, db, "CREATE USER "+user+" IDENTIFIED BY 'pass'", "GRANT "+role+" TO "+user)
	t.Cleanup(func() { mustRun(t, db, "DROP USER "+user) })
	if isMySQL(t, db) {
		mustRun(t, db, "SET DEFAULT ROLE "+role+" TO "+user)
	} else {
		mustRun(t, db, "SET DEFAULT ROLE "+role+" FOR "+user)
	}
	return openConfig(t, db.Name(), fmt.Sprintf("%s:pass@tcp(127.0.0.1:%d)/%s?parseTime=true&loc=UTC&charset=utf8mb4", user, address.Port, address.Name), &gorm.Config{})
}
