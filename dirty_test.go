package outbox_test

import (
	"bytes"
	"context"
	"errors"
	"log"
	"strings"
	"testing"
	"time"

	"gorm.io/gorm"
	"gorm.io/gorm/clause"
	"gorm.io/gorm/logger"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
)

// useEverything calls each function that takes a handle, with the same one.
func useEverything(t *testing.T, tx *gorm.DB) error {
	t.Helper()
	task, err := outbox.Create(tx, cancelOrder, outbox.Args{"n": 1}, outbox.Key("everything"), outbox.StartAfter(time.Hour))
	if err != nil {
		return err
	}
	if err := outbox.Reschedule(tx, task.ID, time.Now().Add(2*time.Hour), outbox.IfVersion(1)); err != nil {
		return err
	}
	found, _, err := outbox.Lookup(tx, task.ID)
	if err != nil {
		return err
	}
	if found == nil || found.Version != 2 || found.Args.String() != `{"n":1}` || found.RunAt.Before(task.RunAt) {
		t.Errorf("looked up %+v after a reschedule", found)
	}
	if _, err := outbox.CancelKey(tx, "everything", outbox.IfVersion(2)); err != nil {
		return err
	}
	again, err := outbox.Rerun(tx, task.ID)
	if err != nil {
		return err
	}
	if err := outbox.Cancel(tx, again.ID); err != nil {
		return err
	}
	batch, err := outbox.CreateBatch(tx, outbox.NewTask{Func: cancelOrder}, outbox.NewTask{Func: cancelOrder, Options: []outbox.CreateOption{outbox.Key("everything")}})
	if err != nil {
		return err
	}
	return errors.Join(outbox.Cancel(tx, batch[0].ID), outbox.Cancel(tx, batch[1].ID))
}

func TestDirtyHandle(t *testing.T) {
	handles := map[string]func(*gorm.DB) *gorm.DB{
		"Model":        func(tx *gorm.DB) *gorm.DB { return tx.Model(&shopOrder{}) },
		"Omit":         func(tx *gorm.DB) *gorm.DB { return tx.Omit("args", "Args", "key", "run_at", clause.Associations) },
		"Select":       func(tx *gorm.DB) *gorm.DB { return tx.Select("id") },
		"Table":        func(tx *gorm.DB) *gorm.DB { return tx.Table("shop_orders") },
		"Where":        func(tx *gorm.DB) *gorm.DB { return tx.Where("name = ?", "x") },
		"Not and Or":   func(tx *gorm.DB) *gorm.DB { return tx.Not("1 = 1").Or("1 = 0") },
		"Find":         func(tx *gorm.DB) *gorm.DB { return tx.Find(&[]shopOrder{}) },
		"Create":       func(tx *gorm.DB) *gorm.DB { return tx.Create(&shopOrder{Name: "y"}) },
		"Unscoped":     func(tx *gorm.DB) *gorm.DB { return tx.Unscoped() },
		"Limit":        func(tx *gorm.DB) *gorm.DB { return tx.Order("id").Limit(1).Offset(5) },
		"Joins":        func(tx *gorm.DB) *gorm.DB { return tx.Joins("JOIN nowhere ON true").Group("id").Distinct("id") },
		"Raw":          func(tx *gorm.DB) *gorm.DB { return tx.Raw("SELECT nonsense") },
		"Exec":         func(tx *gorm.DB) *gorm.DB { return tx.Exec("SELECT 1") },
		"Set":          func(tx *gorm.DB) *gorm.DB { return tx.Set("gorm:table_options", "ENGINE=none").InstanceSet("a", 1) },
		"Attrs":        func(tx *gorm.DB) *gorm.DB { return tx.Attrs(shopOrder{Name: "z"}).Assign(shopOrder{Name: "z"}) },
		"MapColumns":   func(tx *gorm.DB) *gorm.DB { return tx.MapColumns(map[string]string{"id": "name"}) },
		"Scopes":       func(tx *gorm.DB) *gorm.DB { return tx.Scopes(func(db *gorm.DB) *gorm.DB { return db.Where("1 = 0") }) },
		"Preload":      func(tx *gorm.DB) *gorm.DB { return tx.Preload("Nothing") },
		"Clauses":      func(tx *gorm.DB) *gorm.DB { return tx.Clauses(clause.OnConflict{DoNothing: true}, clause.Returning{}) },
		"Locking":      func(tx *gorm.DB) *gorm.DB { return tx.Clauses(clause.Locking{Strength: "UPDATE"}) },
		"session":      func(tx *gorm.DB) *gorm.DB { return tx.Session(&gorm.Session{}) },
		"SkipHooks":    func(tx *gorm.DB) *gorm.DB { return tx.Session(&gorm.Session{SkipHooks: true, NewDB: true}) },
		"CreateBatch":  func(tx *gorm.DB) *gorm.DB { return tx.Session(&gorm.Session{CreateBatchSize: 1, QueryFields: true}) },
		"associations": func(tx *gorm.DB) *gorm.DB { return tx.Session(&gorm.Session{FullSaveAssociations: true}) },
		"no nesting":   func(tx *gorm.DB) *gorm.DB { return tx.Session(&gorm.Session{DisableNestedTransaction: true}) },
		"other NowFunc": func(tx *gorm.DB) *gorm.DB {
			return tx.Session(&gorm.Session{NowFunc: func() time.Time { return time.Unix(9e9, 0) }})
		},
		"default tx": func(tx *gorm.DB) *gorm.DB { return tx.Session(&gorm.Session{SkipDefaultTransaction: false}) },
	}
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		_, _ = shop(t, db, outbox.Options{})
		for name, dirty := range handles {
			t.Run(name, func(t *testing.T) {
				before := time.Now()
				var made *outbox.TaskModel
				err := db.Transaction(func(tx *gorm.DB) error {
					handle := dirty(tx)
					made = dbtest.Create(t, handle, cancelOrder, outbox.Args{"a": "b"}, outbox.Key("dirty "+name), outbox.Queue("q"),
						outbox.Priority(3), outbox.MaxAttempts(4), outbox.Timeout(5*time.Second))
					if err := useEverything(t, handle); err != nil {
						return err
					}
					return tx.Create(&shopOrder{Name: "usable"}).Error
				})
				if err != nil {
					t.Fatal(err)
				}
				var row outbox.TaskModel
				if err := db.Take(&row, "id = ?", made.ID).Error; err != nil {
					t.Fatal(err)
				}
				if row.Func != cancelOrder || row.Args.String() != `{"a":"b"}` || *row.Key != "dirty "+name || row.Queue != "q" ||
					row.Priority != 3 || row.MaxAttempts != 4 || row.TimeoutMS != 5000 || row.State != outbox.StatePending ||
					row.Version != 1 || row.Attempt != 0 || row.ProcessID != nil {
					t.Errorf("inserted %+v", row)
				}
				for what, at := range map[string]time.Time{"run_at": row.RunAt, "created_at": row.CreatedAt} {
					if at.Before(before.Add(-time.Minute)) || at.After(time.Now().Add(time.Minute)) {
						t.Errorf("%s = %v", what, at)
					}
				}
				if !row.RunAt.Equal(made.RunAt) || !row.CreatedAt.Equal(made.CreatedAt) {
					t.Errorf("returned %v, %v but stored %v, %v", made.RunAt, made.CreatedAt, row.RunAt, row.CreatedAt)
				}
			})
		}
		t.Run("the caller's statement stays as it was", func(t *testing.T) {
			if err := db.Create(&shopOrder{Name: "mine"}).Error; err != nil {
				t.Fatal(err)
			}
			handle := db.Model(&shopOrder{}).Where("name = ?", "mine")
			dbtest.Create(t, handle, cancelOrder, nil)
			if r := handle.Update("name", "still mine"); r.Error != nil || r.RowsAffected != 1 {
				t.Errorf("%d rows, %v", r.RowsAffected, r.Error)
			}
		})
	})
}

func TestDebugShowsTheStatement(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		_, _ = shop(t, db, outbox.Options{})
		for name, tt := range map[string]struct {
			config logger.Config
			debug  bool
			shown  []string
			hidden []string
		}{
			"Debug shows it":              {logger.Config{LogLevel: logger.Silent}, true, []string{"INSERT INTO", "outbox_tasks", "secret-7"}, nil},
			"parameterized without data":  {logger.Config{ParameterizedQueries: true}, true, []string{"INSERT INTO"}, []string{"secret-7"}},
			"without Debug it is silence": {logger.Config{LogLevel: logger.Silent}, false, nil, []string{"INSERT"}},
		} {
			t.Run(name, func(t *testing.T) {
				var out bytes.Buffer
				tx := db.Session(&gorm.Session{Logger: logger.New(log.New(&out, "", 0), tt.config)})
				if tt.debug {
					tx = tx.Debug()
				}
				dbtest.Create(t, tx, cancelOrder, outbox.Args{"token": "secret-7"})
				for _, s := range tt.shown {
					if !strings.Contains(out.String(), s) {
						t.Errorf("the log lacks %q:\n%s", s, out.String())
					}
				}
				for _, s := range tt.hidden {
					if strings.Contains(out.String(), s) {
						t.Errorf("the log has %q:\n%s", s, out.String())
					}
				}
			})
		}
	})
}

func TestHandleThatCannotBeUsed(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		bare := db.Session(&gorm.Session{NewDB: true})
		config := *db.Config
		config.Plugins = map[string]gorm.Plugin{}
		bare.Config = &config
		_, _ = shop(t, db, outbox.Options{})
		waiting := dbtest.Create(t, db, cancelOrder, nil, outbox.Key("waiting"), outbox.StartAfter(time.Hour))
		past := dbtest.Create(t, db, cancelOrder, nil)
		if err := outbox.Cancel(db, past.ID); err != nil {
			t.Fatal(err)
		}
		errMine := errors.New("mine")
		for name, tt := range map[string]struct {
			handle func(*gorm.DB) *gorm.DB
			is     error
		}{
			"nil":                      {func(*gorm.DB) *gorm.DB { return nil }, outbox.ErrNotInstalled},
			"the zero DB":              {func(*gorm.DB) *gorm.DB { return &gorm.DB{} }, outbox.ErrNotInstalled},
			"without the plugin":       {func(*gorm.DB) *gorm.DB { return bare }, outbox.ErrNotInstalled},
			"an error of a query":      {func(tx *gorm.DB) *gorm.DB { return tx.First(&shopOrder{}, "name = ?", "nobody") }, gorm.ErrRecordNotFound},
			"an error that was added":  {func(tx *gorm.DB) *gorm.DB { tx = tx.Session(&gorm.Session{}); _ = tx.AddError(errMine); return tx }, errMine},
			"DryRun":                   {func(tx *gorm.DB) *gorm.DB { return tx.Session(&gorm.Session{DryRun: true}) }, outbox.ErrDryRun},
			"DryRun on a dirty handle": {func(tx *gorm.DB) *gorm.DB { return tx.Model(&shopOrder{}).Session(&gorm.Session{DryRun: true}) }, outbox.ErrDryRun},
			"a finished transaction":   {func(tx *gorm.DB) *gorm.DB { over := tx.Begin(); over.Rollback(); return over }, nil},
			"a context that has ended": {func(tx *gorm.DB) *gorm.DB { return tx.WithContext(endedContext()) }, context.Canceled},
		} {
			t.Run(name, func(t *testing.T) {
				handle := tt.handle(db)
				_, e1 := outbox.Create(handle, cancelOrder, nil)
				_, e2 := outbox.CreateBatch(handle, outbox.NewTask{Func: cancelOrder}, outbox.NewTask{Func: cancelOrder})
				_, e3 := outbox.Rerun(handle, past.ID)
				_, _, e4 := outbox.Lookup(handle, waiting.ID)
				_, e5 := outbox.CancelKey(handle, "waiting")
				for what, err := range map[string]error{
					"Create": e1, "CreateBatch": e2, "Rerun": e3, "Lookup": e4, "Cancel": outbox.Cancel(handle, waiting.ID),
					"CancelKey": e5, "Reschedule": outbox.Reschedule(handle, waiting.ID, time.Now()),
				} {
					if err == nil || tt.is != nil && !errors.Is(err, tt.is) {
						t.Errorf("%s: got %v, want %v", what, err, tt.is)
					}
				}
				if n := dbtest.Count(t, db, &outbox.TaskModel{}); n != 1 {
					t.Errorf("%d rows", n)
				}
				if got, _, err := outbox.Lookup(db, waiting.ID); err != nil || got.Version != 1 {
					t.Errorf("changed to %+v, %v", got, err)
				}
			})
		}
		t.Run("ToSQL executes nothing", func(t *testing.T) {
			db.ToSQL(func(tx *gorm.DB) *gorm.DB {
				if _, err := outbox.Create(tx, cancelOrder, nil); !errors.Is(err, outbox.ErrDryRun) {
					t.Errorf("got %v", err)
				}
				return tx
			})
			if n := dbtest.Count(t, db, &outbox.TaskModel{}); n != 1 {
				t.Errorf("%d rows", n)
			}
		})
		t.Run("the transaction is usable after an error of a query", func(t *testing.T) {
			err := db.Transaction(func(tx *gorm.DB) error {
				if _, err := outbox.Create(tx.First(&shopOrder{}, "name = ?", "nobody"), cancelOrder, nil); err == nil {
					t.Error("created through a handle that carries an error")
				}
				_, err := outbox.Create(tx, cancelOrder, nil)
				return err
			})
			if err != nil {
				t.Error(err)
			}
		})
	})
}

func endedContext() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}
