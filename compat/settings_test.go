package compat

import (
	"strings"
	"testing"
	"time"

	"gorm.io/gorm"
	"gorm.io/gorm/schema"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
)

// No setting of the application's *gorm.Config changes what is written or run.
func TestSettings(t *testing.T) {
	for _, c := range []struct {
		name   string
		config gorm.Config
	}{
		{"PrepareStmt", gorm.Config{PrepareStmt: true}},
		{"TranslateError", gorm.Config{TranslateError: true}},
		{"CreateBatchSize of 1", gorm.Config{CreateBatchSize: 1}},
		{"SkipDefaultTransaction", gorm.Config{SkipDefaultTransaction: true}},
		{"QueryFields", gorm.Config{QueryFields: true}},
		{"FullSaveAssociations", gorm.Config{FullSaveAssociations: true}},
		{"AllowGlobalUpdate", gorm.Config{AllowGlobalUpdate: true}},
		{"PropagateUnscoped", gorm.Config{PropagateUnscoped: true}},
		{"all of them", gorm.Config{PrepareStmt: true, TranslateError: true, CreateBatchSize: 1, SkipDefaultTransaction: true,
			QueryFields: true, FullSaveAssociations: true, AllowGlobalUpdate: true, PropagateUnscoped: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			eachDB(t, func(t *testing.T, d database) {
				config := c.config
				db := d.open(t, &config)
				round(t, db, install(t, db, outbox.Options{}))
			})
		})
	}
}

// The application's NowFunc is never compared with due times, nor written.
func TestNowFuncThatLies(t *testing.T) {
	for name, years := range map[string]int{"decades behind": -30, "decades ahead": 30} {
		t.Run(name, func(t *testing.T) {
			eachDB(t, func(t *testing.T, d database) {
				db := d.open(t, &gorm.Config{NowFunc: func() time.Time { return time.Now().AddDate(years, 0, 0) }})
				p := install(t, db, outbox.Options{})
				begun := time.Now()
				round(t, db, p)
				o, later := place(t, db, updateTx, "early", outbox.StartAfter(time.Hour))
				if n, err := p.RunDue(t.Context()); err != nil || n != 0 {
					t.Errorf("RunDue: %d runs of what is due in an hour, %v", n, err)
				}
				if o.CreatedAt.Year() == begun.Year() {
					t.Fatal("the NowFunc is not in use, so the test shows nothing")
				}
				wantStatus(t, db, o.ID, "new")
				var past []outbox.HistoryModel
				if err := db.Find(&past).Error; err != nil {
					t.Fatal(err)
				}
				for _, h := range past {
					for what, at := range map[string]time.Time{"created": h.CreatedAt, "run at": h.RunAt, "finished": h.FinishedAt} {
						if off := at.Sub(begun).Abs(); off > 2*time.Hour {
							t.Errorf("%s %s: %v, %v from now", h.Func, what, at, off)
						}
					}
				}
				if off := later.RunAt.Sub(begun.Add(time.Hour)).Abs(); off > 10*time.Minute {
					t.Errorf("StartAfter(1h) is due at %v, %v off", later.RunAt, off)
				}
			})
		})
	}
}

func TestNamingStrategy(t *testing.T) {
	for _, c := range []struct {
		name   string
		naming schema.Namer
		tables []string
	}{
		{"prefix", schema.NamingStrategy{TablePrefix: "app_"},
			[]string{"app_outbox_tasks", "app_outbox_history", "app_outbox_processes"}},
		{"singular", schema.NamingStrategy{SingularTable: true}, []string{"outbox_task", "outbox_history", "outbox_process"}},
		{"prefix and singular", schema.NamingStrategy{TablePrefix: "app_", SingularTable: true},
			[]string{"app_outbox_task", "app_outbox_history", "app_outbox_process"}},
		{"replaced words", schema.NamingStrategy{NameReplacer: strings.NewReplacer("Outbox", "Out-box")},
			[]string{"out-box_tasks", "outbox_history", "out-box_processes"}},
		{"short identifiers", schema.NamingStrategy{TablePrefix: strings.Repeat("long_", 8), IdentifierMaxLength: 30},
			[]string{strings.Repeat("long_", 8) + "outbox_tasks"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			eachDB(t, func(t *testing.T, d database) {
				db := d.open(t, &gorm.Config{NamingStrategy: c.naming})
				p := install(t, db, outbox.Options{})
				for _, table := range c.tables {
					if !db.Migrator().HasTable(table) {
						tables, _ := db.Migrator().GetTables()
						t.Errorf("no table %s; there are %v", table, tables)
					}
				}
				round(t, db, p)
			})
		})
	}
}

// A *gorm.Config that opens a second database carries the plugin there: it stays bound to the
// first.
func TestReusedConfig(t *testing.T) {
	eachDB(t, func(t *testing.T, d database) {
		config := &gorm.Config{}
		db := d.open(t, config)
		p := install(t, db, outbox.Options{})
		second := d.open(t, config)
		if second.Plugins[p.Name()] == nil {
			t.Fatal("the second database does not carry the plugin, so the test shows nothing")
		}
		round(t, db, p)
		if second.Migrator().HasTable(&outbox.TaskModel{}) {
			t.Error("the second database has tables")
		}
	})
}

func TestTwoDatabasesInOneProcess(t *testing.T) {
	eachDB(t, func(t *testing.T, d database) {
		first, second := mattn.open(t, nil), d.open(t, nil)
		p, q := install(t, first, outbox.Options{}), install(t, second, outbox.Options{})
		dbtest.Start(t, q)
		o, task := place(t, first, update, "first")
		placed(t, second, update, "second")
		placed(t, second, updateTx, "second")
		if live, _, err := outbox.Lookup(first, task.ID); err != nil || live == nil {
			t.Errorf("the first database's task does not wait any more: %v", err)
		}
		wantStatus(t, first, o.ID, "new")
		dbtest.Start(t, p)
		dbtest.Ended(t, first, task.ID)
		wantStatus(t, first, o.ID, "first")
		if n := dbtest.Count(t, second, &outbox.HistoryModel{}); n != 2 {
			t.Errorf("%d tasks in the second database's history, want 2", n)
		}
	})
}

// gorm.G is the same transaction in other words.
func TestGenerics(t *testing.T) {
	eachDB(t, func(t *testing.T, d database) {
		db := d.open(t, nil)
		p := install(t, db, outbox.Options{})
		var task *outbox.TaskModel
		o := order{Item: "generic", Status: "new"}
		err := db.Transaction(func(tx *gorm.DB) error {
			if err := gorm.G[order](tx).Create(t.Context(), &o); err != nil {
				return err
			}
			if _, err := gorm.G[order](tx).Where("id = ?", o.ID).Take(t.Context()); err != nil {
				return err
			}
			task = dbtest.Create(t, tx, updateTx, orderArgs{o.ID, "paid"})
			n, err := gorm.G[outbox.TaskModel](tx).Where("id = ?", task.ID).Count(t.Context(), "*")
			if err == nil && n != 1 {
				t.Errorf("%d tasks of the id in the transaction", n)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.RunDue(t.Context()); err != nil {
			t.Fatal(err)
		}
		past, err := gorm.G[outbox.HistoryModel](db).Where("id = ?", task.ID).Take(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if past.Status != outbox.StatusSuccess {
			t.Errorf("ended as %s: %s", past.Status, deref(past.Error))
		}
		wantStatus(t, db, o.ID, "paid")
	})
}
