package outbox_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"regexp"
	"strings"
	"testing"
	"time"

	"gorm.io/driver/mysql"
	"gorm.io/driver/postgres"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
	"gorm.io/gorm/schema"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
)

var ddl = regexp.MustCompile(`(?i)\b(CREATE|ALTER|DROP|COMMENT)\b[^\n]*`)

// dialectors open the databases by name.
var dialectors = map[string]func(dsn string) gorm.Dialector{
	"sqlite": sqlite.Open, "postgres": postgres.Open, "mysql": mysql.Open,
}

// scriptParam is what a DSN needs for several statements in one text.
var scriptParam = map[string]string{"mysql": "&multiStatements=true"}

// openConfig opens a database with a configuration.
func openConfig(t *testing.T, kind, dsn string, config *gorm.Config) *gorm.DB {
	t.Helper()
	if config.Logger == nil {
		config.Logger = logger.Discard
	}
	db, err := gorm.Open(dialectors[kind](dsn), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if pool, err := db.DB(); err != nil || pool.Close() != nil {
			t.Errorf("close: %v", err)
		}
	})
	return db
}

func quiet() outbox.Options { return outbox.Options{Logger: slog.New(slog.DiscardHandler)} }

// catalog lists what a database holds, without the name of the schema that is in the way of a
// comparison.
func catalog(t *testing.T, db *gorm.DB) string {
	t.Helper()
	query := "SELECT type || ' ' || name || ': ' || coalesce(sql, '') FROM sqlite_master ORDER BY 1"
	if db.Name() == "postgres" {
		query = `SELECT replace(line, current_schema(), 'here') FROM (
			SELECT format('%s.%s %s %s %s null=%s default=%s', table_name, column_name, ordinal_position, udt_name,
				character_maximum_length, is_nullable, column_default) AS line
			FROM information_schema.columns WHERE table_schema = current_schema()
			UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = current_schema()) l ORDER BY 1`
	}
	if db.Name() == "mysql" {
		query = `SELECT CONCAT_WS(' ', table_name, column_name, ordinal_position, column_type, collation_name, is_nullable, column_default) AS line
			FROM information_schema.columns WHERE table_schema = DATABASE()
			UNION ALL SELECT CONCAT_WS(' ', table_name, index_name, seq_in_index, column_name, non_unique)
			FROM information_schema.statistics WHERE table_schema = DATABASE() ORDER BY 1`
	}
	var lines []string
	if err := db.Raw(query).Scan(&lines).Error; err != nil {
		t.Fatal(err)
	}
	return strings.Join(lines, "\n")
}

func TestSchemaByNamingStrategy(t *testing.T) {
	t.Parallel()
	for _, d := range dbtest.Databases {
		for name, namer := range map[string]schema.NamingStrategy{
			"default":          {},
			"prefix":           {TablePrefix: "shop_"},
			"singular":         {SingularTable: true},
			"prefix, singular": {TablePrefix: "My-Shop_", SingularTable: true},
			"schema":           {TablePrefix: "app."},
			"schema, prefix":   {TablePrefix: "app.x_", SingularTable: true},
			"no lower case":    {NoLowerCase: true},
		} {
			qualified := strings.HasPrefix(namer.TablePrefix, "app.")
			if qualified && d.Name == "sqlite" {
				continue // there it is an attached database, which a pool of connections does not share
			}
			t.Run(d.Name+"/"+name, func(t *testing.T) {
				dsn := d.DSN(t)
				db := openConfig(t, d.Dialect, dsn, &gorm.Config{})
				if qualified {
					var here string
					schema := map[string]string{"postgres": "current_schema() || '_app'", "mysql": "CONCAT(DATABASE(), '_app')"}[d.Dialect]
					if err := db.Raw("SELECT " + schema).Scan(&here).Error; err != nil {
						t.Fatal(err)
					}
					namer.TablePrefix = strings.Replace(namer.TablePrefix, "app", here, 1)
					mustRun(t, db, "CREATE SCHEMA "+here)
					defer mustRun(t, db, "DROP SCHEMA "+here+map[string]string{"postgres": " CASCADE"}[d.Dialect])
				}
				var out bytes.Buffer
				db = openConfig(t, d.Dialect, dsn, &gorm.Config{NamingStrategy: namer,
					Logger: logger.New(log.New(&out, "", 0), logger.Config{LogLevel: logger.Info})})
				p, ran := shop(t, db, outbox.Options{})
				for _, model := range []any{&outbox.TaskModel{}, &outbox.HistoryModel{}, &outbox.ProcessModel{}, &outbox.AuditModel{}} {
					// Not HasTable, which looks for MySQL's table "schema.name" in the connection's
					// own schema.
					if err := db.Session(&gorm.Session{Logger: logger.Discard}).Limit(1).Find(model).Error; err != nil {
						t.Fatalf("no table for %T: %v", model, err)
					}
				}

				t.Run("a second Migrate changes nothing", func(t *testing.T) {
					before := catalog(t, db)
					if err := p.Migrate(t.Context()); err != nil {
						t.Fatal(err)
					}
					if after := catalog(t, db); after != before {
						t.Errorf("before:\n%s\nafter:\n%s", before, after)
					}
				})
				t.Run("AutoMigrate afterwards executes no DDL", func(t *testing.T) {
					if qualified && d.Dialect == "mysql" {
						t.Skip("GORM's AutoMigrate finds no table of another schema there, not even its own of the first run")
					}
					before := catalog(t, db)
					out.Reset()
					if err := db.AutoMigrate(&outbox.TaskModel{}, &outbox.HistoryModel{}, &outbox.ProcessModel{}, &outbox.AuditModel{}); err != nil {
						t.Fatal(err)
					}
					if out.Len() == 0 {
						t.Error("the logger recorded nothing")
					}
					for _, s := range ddl.FindAllString(out.String(), -1) {
						t.Errorf("executed %s", s)
					}
					if after := catalog(t, db); after != before {
						t.Errorf("before:\n%s\nafter:\n%s", before, after)
					}
				})
				t.Run("everything works there", func(t *testing.T) {
					if err := db.Transaction(func(tx *gorm.DB) error { return useEverything(t, tx) }); err != nil {
						t.Fatal(err)
					}
					stop := dbtest.Start(t, p)
					defer stop()
					task := dbtest.Create(t, db, cancelOrder, outbox.Args{"a": 1}, outbox.Key("k"))
					dbtest.Receive(t, ran)
					dbtest.Ended(t, db, task.ID)
				})
				t.Run("Schema by hand gives the same", func(t *testing.T) {
					if qualified {
						t.Skip("the other schema's name would differ")
					}
					other := openConfig(t, d.Dialect, d.DSN(t)+scriptParam[d.Dialect], &gorm.Config{NamingStrategy: namer})
					text, err := p.Schema(d.Dialect)
					if err != nil {
						t.Fatal(err)
					}
					mustRun(t, other, text)
					ours := outbox.New(quiet())
					if err := other.Use(ours); err != nil {
						t.Fatal(err)
					}
					if err := other.AutoMigrate(&shopOrder{}); err != nil { // as shop does
						t.Fatal(err)
					}
					if a, b := catalog(t, db), catalog(t, other); a != b {
						t.Errorf("Migrate:\n%s\nby hand:\n%s", a, b)
					}
					if _, err := ours.RunDue(t.Context()); err != nil {
						t.Errorf("RunDue on it: %v", err)
					}
					ctx, cancel := context.WithCancel(t.Context())
					cancel()
					if err := ours.Run(ctx); err != nil {
						t.Errorf("Run on it: %v", err)
					}
					if err := ours.Migrate(t.Context()); err != nil || catalog(t, other) != catalog(t, db) {
						t.Errorf("Migrate after it: %v", err)
					}
				})
			})
		}
	}
}

func TestSchemaOfAnUnknownDatabase(t *testing.T) {
	p := outbox.New(quiet())
	if _, err := p.Schema("oracle"); err == nil || !strings.Contains(err.Error(), "oracle") || !strings.Contains(err.Error(), "mysql, postgres, sqlite") {
		t.Errorf("got %v", err)
	}
	for _, name := range []string{"mysql", "postgres", "sqlite"} {
		if text, err := p.Schema(name); err != nil || !strings.Contains(strings.ReplaceAll(text, "`", `"`), `"outbox_tasks"`) || strings.Contains(text, "{") {
			t.Errorf("%s before db.Use: %v\n%s", name, err, text)
		}
	}
}

func TestTenFirstMigratesAtOnce(t *testing.T) {
	for _, d := range dbtest.Databases {
		t.Run(d.Name, func(t *testing.T) {
			dsn := d.DSN(t)
			plugins := make([]*outbox.Plugin, 10)
			for i := range plugins {
				plugins[i] = outbox.New(quiet())
				if err := openConfig(t, d.Dialect, dsn, &gorm.Config{}).Use(plugins[i]); err != nil {
					t.Fatal(err)
				}
			}
			for i, err := range together(10, func(i int) error { return plugins[i].Migrate(t.Context()) }) {
				if err != nil {
					t.Errorf("process %d: %v", i, err)
				}
			}
			if _, err := plugins[3].RunDue(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestMissingTables(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		opts := quiet()
		opts.ProducerOnly = true
		p := outbox.New(opts)
		if err := db.Use(p); err != nil {
			t.Fatal(err)
		}
		if db.Migrator().HasTable("outbox_tasks") || db.Migrator().HasTable("outbox_schema") {
			t.Error("db.Use made tables")
		}
		_, create := outbox.Create(db, "f", nil)
		_, batch := outbox.CreateBatch(db, outbox.NewTask{Func: "f", Options: []outbox.CreateOption{outbox.Key("k")}})
		_, due := p.RunDue(t.Context())
		_, rerun := outbox.Rerun(db, "x")
		_, _, lookup := outbox.Lookup(db, "x")
		_, cancelKey := outbox.CancelKey(db, "x")
		for what, err := range map[string]error{
			"Create": create, "CreateBatch": batch, "RunDue": due, "Run": p.Run(t.Context()), "Lookup": lookup, "Rerun": rerun,
			"Cancel": outbox.Cancel(db, "x"), "CancelKey": cancelKey, "Reschedule": outbox.Reschedule(db, "x", time.Now()),
		} {
			if !errors.Is(err, outbox.ErrSchema) || !strings.Contains(err.Error(), "Migrate") || !strings.Contains(err.Error(), fmt.Sprintf("Schema(%q)", db.Name())) {
				t.Errorf("%s: got %v, want ErrSchema that says what to do", what, err)
			}
		}
	})
}

func TestNewerTables(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		p, _ := shop(t, db, outbox.Options{})
		mustRun(t, db, "INSERT INTO outbox_schema (version, migrated_at) SELECT 99, migrated_at FROM outbox_schema")
		_, due := p.RunDue(t.Context())
		for what, err := range map[string]error{"Migrate": p.Migrate(t.Context()), "Run": p.Run(t.Context()), "RunDue": due} {
			if !errors.Is(err, outbox.ErrSchema) || !strings.Contains(err.Error(), "version 99") {
				t.Errorf("%s: got %v", what, err)
			}
		}
	})
}

func TestColumnsAndIndexesOfOthers(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		p, ran := shop(t, db, outbox.Options{Scan: "@every 20ms"})
		dbtest.Start(t, p)
		work := func() {
			t.Helper()
			if err := db.Transaction(func(tx *gorm.DB) error { return useEverything(t, tx) }); err != nil {
				t.Fatal(err)
			}
			task := dbtest.Create(t, db, cancelOrder, nil, outbox.Key("k"))
			dbtest.Receive(t, ran)
			if past := dbtest.Ended(t, db, task.ID); past.Status != outbox.StatusSuccess {
				t.Fatalf("ended as %+v", past)
			}
		}
		for range 3 { // statements are prepared by now
			work()
		}
		mustRun(t, db, "ALTER TABLE outbox_tasks ADD COLUMN tenant varchar(64)", "ALTER TABLE outbox_history ADD COLUMN tenant text",
			"ALTER TABLE outbox_processes ADD COLUMN tenant text", "CREATE INDEX mine ON outbox_tasks (tenant, run_at)")
		for range 3 {
			work()
		}
		if err := p.Migrate(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
