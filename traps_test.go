package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"testing"
	"time"

	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

func TestUseTwice(t *testing.T) {
	db := testdb.SQLite(t)
	shop(t, db, outbox.Options{})
	if err := db.Use(outbox.New(quiet())); !errors.Is(err, gorm.ErrRegistered) {
		t.Errorf("got %v, want gorm.ErrRegistered", err)
	}
}

// One *gorm.Config for two gorm.Open calls initialises the plugin again, with the second database.
func TestConfigThatOpensASecondDatabase(t *testing.T) {
	for _, d := range dbtest.Databases {
		t.Run(d.Name, func(t *testing.T) {
			config := &gorm.Config{Logger: logger.Discard}
			db := openConfig(t, d.Dialect, d.DSN(t), config)
			first, err := db.DB()
			if err != nil {
				t.Fatal(err)
			}
			defer first.Close()
			p, ran := shop(t, db, outbox.Options{})
			handle := db.Session(&gorm.Session{}) // has its own copy of the config
			second := openConfig(t, d.Dialect, d.DSN(t), config)
			if second.Migrator().HasTable("outbox_tasks") {
				t.Fatal("the plugin made tables in the second database")
			}
			dbtest.Start(t, p)
			task := dbtest.Create(t, handle, cancelOrder, nil)
			if got := dbtest.Receive(t, ran); got != task.ID {
				t.Errorf("task %s ran, want %s", got, task.ID)
			}
			dbtest.Ended(t, handle, task.ID)
		})
	}
}

func TestTwoDatabasesAreTwoPlugins(t *testing.T) {
	a, b := testdb.SQLite(t), testdb.Postgres(t)
	pa, ranA := shop(t, a, outbox.Options{})
	pb, ranB := shop(t, b, outbox.Options{})
	dbtest.Start(t, pa)
	dbtest.Start(t, pb)
	taskA, taskB := dbtest.Create(t, a, cancelOrder, nil, outbox.Key("same")), dbtest.Create(t, b, cancelOrder, nil, outbox.Key("same"))
	if got := dbtest.Receive(t, ranA); got != taskA.ID {
		t.Errorf("task %s ran on the first, want %s", got, taskA.ID)
	}
	if got := dbtest.Receive(t, ranB); got != taskB.ID {
		t.Errorf("task %s ran on the second, want %s", got, taskB.ID)
	}
	if taskExists(t, a, taskB.ID) || taskExists(t, b, taskA.ID) {
		t.Error("a task is in the other database")
	}
}

func TestUnsupportedDatabase(t *testing.T) {
	db, err := gorm.Open(strange{}, &gorm.Config{Logger: logger.Discard})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Use(outbox.New(quiet())); err == nil || !strings.Contains(err.Error(), `"strange" is not supported; supported are mysql, postgres, sqlite`) {
		t.Errorf("got %v", err)
	}
}

// strange is a dialector without a database.
type strange struct{ gorm.Dialector }

func (strange) Name() string              { return "strange" }
func (strange) Initialize(*gorm.DB) error { return nil }

func TestBadOptionsAreReportedByUseAllAtOnce(t *testing.T) {
	db := testdb.SQLite(t)
	opts := quiet()
	opts.Scan, opts.Concurrency, opts.Heartbeat, opts.HeartbeatLimit = "every now and then", -1, time.Millisecond, time.Millisecond
	opts.MaxArgsBytes, opts.MaxResultBytes, opts.MaxErrorBytes = 1, -1, 1<<30
	opts.Queues = []string{"good", "", strings.Repeat("x", 65)}
	opts.Hooks, opts.Wakers = []outbox.Hooks{nil}, []outbox.Waker{nil}
	p := outbox.New(opts)
	err := db.Use(p)
	if err == nil {
		t.Fatal("db.Use took bad options")
	}
	for _, s := range []string{"Scan", "every now and then", "Concurrency -1", "Heartbeat 1ms", "HeartbeatLimit", "MaxArgsBytes 1 ", "MaxResultBytes -1",
		"MaxErrorBytes 1073741824", "Queues: is empty", "Queues: has 65 bytes", "Hooks[0] is nil", "Wakers[0] is nil"} {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("the error does not tell of %q:\n%v", s, err)
		}
	}
	if err := p.Migrate(t.Context()); !errors.Is(err, outbox.ErrNotInstalled) {
		t.Errorf("Migrate: %v", err)
	}
	if err := p.Run(t.Context()); !errors.Is(err, outbox.ErrNotInstalled) {
		t.Errorf("Run: %v", err)
	}
}

func TestScanSpecs(t *testing.T) {
	for spec, says := range map[string]string{
		"":                          "",
		"@every 1s":                 "",
		"@every 500ms":              "",
		"@every 10ms":               "",
		"* * * * *":                 "",
		"*/5 * * * * *":             "",
		"@hourly":                   "",
		"TZ=UTC 0 3 * * *":          "",
		"CRON_TZ=Asia/Tokyo @daily": "",
		"@every 1ms":                "below 10ms",
		"@every 0s":                 "below 10ms",
		"@every -1s":                "below 10ms",
		"@every":                    "@every",
		"@every soon":               "soon",
		"TZ=UTC":                    "TZ=UTC",
		"CRON_TZ=UTC":               "CRON_TZ=UTC",
		"TZ=Nowhere * * * * *":      "Nowhere",
		"0 0 31 2 *":                "never comes",
		"61 * * * *":                "61",
		"* * *":                     "* * *",
		"* * * * * * *":             "* * * * * * *",
		"garbage":                   "garbage",
		" ":                         `Scan " "`,
		"@never":                    "@never",
	} {
		t.Run(spec, func(t *testing.T) {
			opts := quiet()
			opts.Scan = spec
			err := testdb.SQLite(t).Use(outbox.New(opts))
			if says == "" {
				if err != nil {
					t.Error(err)
				}
			} else if err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), "Scan") {
				t.Errorf("got %v, want an error with %q", err, says)
			}
		})
	}
}

func TestSubSecondScanFindsWhatNoWakeUpTold(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		p, ran := shop(t, db, outbox.Options{Scan: "@every 20ms"})
		dbtest.Start(t, p)
		task := dbtest.Create(t, db, cancelOrder, nil, outbox.StartAfter(time.Hour))
		mustRun(t, db, "UPDATE outbox_tasks SET run_at = created_at") // behind the library's back
		if got := dbtest.Receive(t, ran); got != task.ID {
			t.Errorf("task %s ran", got)
		}
	})
}

// The application's NowFunc, hooks of its own and logger have no say in what is written or when it
// is due.
func TestApplicationsConfigHasNoSay(t *testing.T) {
	for _, d := range dbtest.Databases {
		t.Run(d.Name, func(t *testing.T) {
			db := openConfig(t, d.Dialect, d.DSN(t), &gorm.Config{
				NowFunc:         func() time.Time { return time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC) },
				CreateBatchSize: 2, QueryFields: true, FullSaveAssociations: true, TranslateError: true, AllowGlobalUpdate: true,
				DisableNestedTransaction: true, SkipDefaultTransaction: true,
			})
			p, ran := shop(t, db, outbox.Options{})
			if err := db.Transaction(func(tx *gorm.DB) error { return useEverything(t, tx) }); err != nil {
				t.Fatal(err)
			}
			due := dbtest.Create(t, db, cancelOrder, nil)
			early := dbtest.Create(t, db, cancelOrder, nil, outbox.StartAfter(time.Hour))
			if n, err := p.RunDue(t.Context()); n != 1 || err != nil {
				t.Fatalf("%d ran, %v", n, err)
			}
			if got := dbtest.Receive(t, ran); got != due.ID || !taskExists(t, db, early.ID) {
				t.Errorf("task %s ran", got)
			}
			var row outbox.TaskModel // generics read the same: compat, with a GORM that has them
			if err := db.Where("id = ?", early.ID).First(&row).Error; err != nil || row.RunAt.Year() > 2099 || row.CreatedAt.Year() > 2099 {
				t.Errorf("%+v, %v", row, err)
			}
		})
	}
}

type recordingHooks struct {
	outbox.NopHooks
	create func(context.Context, *outbox.TaskModel) error
}

func (h recordingHooks) OnCreate(ctx context.Context, task *outbox.TaskModel) error {
	return h.create(ctx, task)
}

func TestOnCreate(t *testing.T) {
	type key struct{}
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		errNo := errors.New("the quota is used up")
		seen := make(chan outbox.Meta, 10)
		var logged strings.Builder
		p := dbtest.Install(t, db, outbox.Options{Logger: slog.New(slog.NewTextHandler(&logged, nil)), Hooks: []outbox.Hooks{
			recordingHooks{create: func(ctx context.Context, task *outbox.TaskModel) error {
				switch task.Args.String() {
				case `{"do":"refuse"}`:
					return errNo
				case `{"do":"panic"}`:
					panic("hook is broken")
				case `{"do":"much"}`:
					task.Meta = outbox.Meta{"a": strings.Repeat("x", 70<<10)}
					return nil
				}
				trace, _ := ctx.Value(key{}).(string)
				task.Meta = outbox.Meta{"trace": trace, "odd": "\x00 \" 😀 {now}"}
				return nil
			}},
			recordingHooks{create: func(_ context.Context, task *outbox.TaskModel) error {
				if task.Meta != nil {
					task.Meta["second"] = "too"
				}
				return nil
			}},
		}}, func(p *outbox.Plugin) {
			p.Handle(cancelOrder, func(ctx context.Context, _ outbox.Args) error {
				task, _ := outbox.TaskFrom(ctx)
				seen <- task.Meta
				return nil
			})
		})
		if err := db.AutoMigrate(&shopOrder{}); err != nil {
			t.Fatal(err)
		}
		check := func(t *testing.T, where string, m outbox.Meta) {
			t.Helper()
			if len(m) != 3 || m["trace"] != "t-1" || m["second"] != "too" || m["odd"] != "\x00 \" 😀 {now}" {
				t.Errorf("%s: %q", where, m)
			}
		}
		t.Run("Meta travels to the handler, history and re-runs", func(t *testing.T) {
			tx := db.WithContext(context.WithValue(t.Context(), key{}, "t-1"))
			task := dbtest.Create(t, tx, cancelOrder, nil)
			check(t, "created", task.Meta)
			if n, err := p.RunDue(t.Context()); n != 1 || err != nil {
				t.Fatalf("%d ran, %v", n, err)
			}
			check(t, "handler", dbtest.Receive(t, seen))
			check(t, "history", dbtest.Ended(t, db, task.ID).Meta)
			again, err := outbox.Rerun(tx, task.ID, outbox.StartAfter(time.Hour))
			if err != nil {
				t.Fatal(err)
			}
			check(t, "re-run", again.Meta)
			batch, err := outbox.CreateBatch(tx, outbox.NewTask{Func: cancelOrder, Options: []outbox.CreateOption{outbox.StartAfter(time.Hour)}})
			if err != nil {
				t.Fatal(err)
			}
			stored, _, err := outbox.Lookup(db, batch[0].ID)
			if err != nil {
				t.Fatal(err)
			}
			check(t, "batch", stored.Meta)
		})
		for what, says := range map[string]string{"refuse": "refused by a hook: the quota is used up", "much": "over the limit of 65536 (Options.MaxArgsBytes)"} {
			t.Run(what+" leaves the transaction usable", func(t *testing.T) {
				before := dbtest.Count(t, db, &outbox.TaskModel{})
				err := db.Transaction(func(tx *gorm.DB) error {
					_, err := outbox.Create(tx, cancelOrder, outbox.Args{"do": what})
					if err == nil || !strings.Contains(err.Error(), says) || what == "refuse" && !errors.Is(err, errNo) {
						t.Errorf("got %v", err)
					}
					return tx.Create(&shopOrder{}).Error
				})
				if err != nil || dbtest.Count(t, db, &outbox.TaskModel{}) != before {
					t.Errorf("not usable or something inserted: %v", err)
				}
			})
		}
		t.Run("a panic is logged and changes nothing", func(t *testing.T) {
			task := dbtest.Create(t, db, cancelOrder, outbox.Args{"do": "panic"})
			if !taskExists(t, db, task.ID) || !strings.Contains(logged.String(), "hook is broken") || strings.Contains(logged.String(), `"do"`) {
				t.Errorf("logged %q", logged.String())
			}
		})
	})
}

// A re-run's hooks see the finished task's Meta. They set keys anew; what they leave out is kept,
// also by a hook that makes a new map.
func TestOnCreateOfARerun(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		var shown outbox.Meta
		var of *string
		p := dbtest.Install(t, db, outbox.Options{Hooks: []outbox.Hooks{
			recordingHooks{create: func(ctx context.Context, task *outbox.TaskModel) error {
				shown, of = maps.Clone(task.Meta), task.RerunOf
				task.Meta = outbox.Meta{"trace": fmt.Sprint("of ", task.ID)}
				if task.RerunOf == nil {
					task.Meta["tenant"] = "t-1"
				}
				return nil
			}},
		}}, func(p *outbox.Plugin) {
			p.Handle(cancelOrder, func(context.Context, outbox.Args) error { return nil })
		})
		old := dbtest.Create(t, db, cancelOrder, nil)
		if of != nil || shown != nil {
			t.Errorf("a new task is shown with Meta %v, RerunOf %v", shown, of)
		}
		if n, err := p.RunDue(t.Context()); n != 1 || err != nil {
			t.Fatalf("%d ran, %v", n, err)
		}
		again, err := outbox.Rerun(db, old.ID)
		if err != nil {
			t.Fatal(err)
		}
		if of == nil || *of != old.ID || !maps.Equal(shown, old.Meta) {
			t.Errorf("the hook was shown Meta %v of %v", shown, of)
		}
		stored, _, err := outbox.Lookup(db, again.ID)
		if err != nil {
			t.Fatal(err)
		}
		want := outbox.Meta{"tenant": "t-1", "trace": "of " + again.ID}
		if !maps.Equal(stored.Meta, want) || !maps.Equal(again.Meta, want) {
			t.Errorf("Meta is %v, returned as %v; want %v", stored.Meta, again.Meta, want)
		}
	})
}

// A hook sets Meta and nothing else: whatever it writes elsewhere has passed no check.
func TestOnCreateChangesMetaOnly(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		var change func(*outbox.TaskModel)
		dbtest.Install(t, db, outbox.Options{Hooks: []outbox.Hooks{
			recordingHooks{create: func(_ context.Context, task *outbox.TaskModel) error {
				change(task)
				return nil
			}},
		}}, func(p *outbox.Plugin) {
			p.Handle(cancelOrder, func(context.Context, outbox.Args) error { return nil })
		})
		key := "other"
		for name, c := range map[string]func(*outbox.TaskModel){
			"ID":          func(t *outbox.TaskModel) { t.ID = "x" },
			"Func":        func(t *outbox.TaskModel) { t.Func = "other" },
			"Args":        func(t *outbox.TaskModel) { t.Args = outbox.JSON("not JSON") },
			"Key":         func(t *outbox.TaskModel) { t.Key = &key },
			"Queue":       func(t *outbox.TaskModel) { t.Queue = strings.Repeat("q", 100) },
			"Priority":    func(t *outbox.TaskModel) { t.Priority = 99 },
			"RunAt":       func(t *outbox.TaskModel) { t.RunAt = time.Now() },
			"MaxAttempts": func(t *outbox.TaskModel) { t.MaxAttempts = -1 },
			"TimeoutMS":   func(t *outbox.TaskModel) { t.TimeoutMS = -1 },
			"RerunOf":     func(t *outbox.TaskModel) { t.RerunOf = &key },
			"Args, Key":   func(t *outbox.TaskModel) { t.Args[0] = 'x'; *t.Key = "in place" },
		} {
			change = c
			_, err := outbox.Create(db, cancelOrder, outbox.Args{"n": 1}, outbox.Key("key"))
			if err == nil || !strings.Contains(err.Error(), "has changed "+name+": OnCreate may set Meta only") ||
				!strings.Contains(err.Error(), "recordingHooks") {
				t.Errorf("%s: got %v", name, err)
			}
		}
		if n := dbtest.Count(t, db, &outbox.TaskModel{}); n != 0 {
			t.Errorf("%d tasks were inserted", n)
		}
		change = func(task *outbox.TaskModel) {
			task.Meta = outbox.Meta{"half": "way"}
			task.Priority = 99
			panic("broken")
		}
		if task := dbtest.Create(t, db, cancelOrder, nil); task.Meta != nil || task.Priority != 2 {
			t.Errorf("a panic has changed Meta to %v, Priority to %d", task.Meta, task.Priority)
		}
	})
}

// A task thousands of years off must not make the dispatcher's sleep overflow to nothing.
func TestFarFutureDoesNotSpin(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		looks := make(chan struct{}, 1_000_000)
		p, ran := shop(t, db, outbox.Options{Scan: "@every 1h", Clock: func() time.Time {
			select {
			case looks <- struct{}{}:
			default:
			}
			return time.Now()
		}})
		dbtest.Create(t, db, cancelOrder, nil, outbox.StartAt(time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)))
		dbtest.Start(t, p)
		dbtest.Eventually(t, "the dispatcher has started", func() bool { return dbtest.Count(t, db, &outbox.ProcessModel{}) == 1 })
		task := dbtest.Create(t, db, cancelOrder, nil, outbox.StartAfter(500*time.Millisecond), outbox.Queue("other"))
		if got := dbtest.Receive(t, ran); got != task.ID {
			t.Errorf("task %s ran", got)
		}
		if n := len(looks); n > 300 {
			t.Errorf("the dispatcher asked the database %d times within half a second", n)
		}
	})
}
