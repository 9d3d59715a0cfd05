package outbox_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

// eachMySQL runs a test on both servers that understand MySQL's dialect.
func eachMySQL(t *testing.T, test func(t *testing.T, newDSN func(testing.TB) string)) {
	t.Helper()
	for _, d := range dbtest.Databases {
		if d.Dialect == "mysql" {
			t.Run(d.Name, func(t *testing.T) {
				t.Parallel()
				test(t, d.DSN)
			})
		}
	}
}

// Whatever its DSN says, a connection is right or refused.
func TestSettingsOfMySQL(t *testing.T) { eachMySQL(t, settings) }

func settings(t *testing.T, newDSN func(testing.TB) string) {
	for _, tt := range []struct {
		params, refused string
	}{
		{"parseTime=true&loc=UTC", ""},
		{"parseTime=true&loc=UTC&interpolateParams=true", ""},
		{"parseTime=true&loc=UTC&clientFoundRows=true", ""},
		{"parseTime=true&loc=UTC&clientFoundRows=true&interpolateParams=true", ""},
		{"parseTime=true&loc=UTC&columnsWithAlias=true&multiStatements=true", ""},
		{"parseTime=true&loc=Etc%2FUTC", ""},
		{"parseTime=true&loc=UTC&time_zone=%27-08%3A00%27", ""},
		{"parseTime=true&loc=UTC&sql_mode=%27ANSI%2CTRADITIONAL%27", ""},
		{"parseTime=true&loc=UTC&sql_mode=%27NO_BACKSLASH_ESCAPES%2CSTRICT_ALL_TABLES%27&interpolateParams=true", ""},
		{"parseTime=true&loc=UTC&sql_safe_updates=1", "sql_safe_updates"},
		{"parseTime=true&loc=UTC&autocommit=0", "autocommit is off"},
		{"", ""},
		{"loc=Asia%2FTokyo&interpolateParams=true", ""}, // which without parseTime moves nothing that the library reads
		{"parseTime=true&loc=Asia%2FTokyo", "use loc=UTC"},
		{"parseTime=true&loc=Europe%2FLondon", "use loc=UTC"}, // which is at UTC in winter
		{"parseTime=true&loc=UTC&charset=latin1", "use charset=utf8mb4"},
		{"parseTime=true&loc=UTC&sql_mode=%27%27", "STRICT_TRANS_TABLES"},
	} {
		t.Run(tt.params, func(t *testing.T) {
			dsn, _, _ := strings.Cut(newDSN(t), "?")
			if !strings.Contains(tt.params, "charset") {
				tt.params += "&charset=utf8mb4"
			}
			db := openConfig(t, "mysql", dsn+"?"+strings.TrimPrefix(tt.params, "&"), &gorm.Config{})
			opts := quick()
			opts.Logger = slog.New(slog.DiscardHandler)
			p := outbox.New(opts)
			late := time.Now().Add(-time.Hour)
			p.Handle("emoji", func(ctx context.Context, a struct {
				Text string `json:"text"`
			}) (string, error) {
				task, _ := outbox.TaskFrom(ctx)
				if d := task.RunAt.Sub(late); d > time.Millisecond || d < -time.Millisecond {
					return "", fmt.Errorf("it was to start %s later", d)
				}
				return a.Text, nil
			})
			p.Handle("Emoji", func(context.Context) error { return nil })
			if err := db.Use(p); err != nil {
				t.Fatal(err)
			}
			err := p.Migrate(t.Context())
			if tt.refused != "" {
				if err == nil || !strings.Contains(err.Error(), tt.refused) {
					t.Errorf("Migrate: %v", err)
				}
				good := openConfig(t, "mysql", dsn+"?parseTime=true&loc=UTC&charset=utf8mb4", &gorm.Config{})
				dbtest.Install(t, good, quick(), nil)
				if err := p.Run(t.Context()); err == nil || !strings.Contains(err.Error(), tt.refused) {
					t.Errorf("Run: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			dbtest.Start(t, p)
			text := `🚀 it's "quoted" \ and \n 漢字`
			task := dbtest.Create(t, db, "emoji", outbox.Args{"text": text}, outbox.StartAt(late), outbox.Key("🚀"))
			if past := dbtest.Ended(t, db, task.ID); past.Status != outbox.StatusSuccess || past.Result.String() != fmt.Sprintf("%q", text) || *past.Key != "🚀" {
				t.Errorf("%+v: %s", past, past.Result)
			}
			// What follows depends on how many rows the driver says that a statement has changed.
			waiting := dbtest.Create(t, db, "Emoji", nil, outbox.StartAfter(time.Hour), outbox.Key("key"))
			at := waiting.RunAt
			if err := outbox.Reschedule(db, waiting.ID, at); err != nil {
				t.Errorf("Reschedule to the same time: %v", err)
			}
			if err := outbox.Reschedule(db, waiting.ID, at, outbox.IfVersion(1)); err == nil {
				t.Error("Reschedule from a version that is over")
			}
			if _, err := outbox.Create(db, "Emoji", nil, outbox.Key("key")); err == nil {
				t.Error("Create took a key twice")
			}
			for _, key := range []string{"Key", "key ", "kéy"} {
				if _, err := outbox.Create(db, "Emoji", nil, outbox.Key(key), outbox.StartAfter(time.Hour)); err != nil {
					t.Errorf("Create beside the key %q: %v", key, err)
				}
			}
			if got, _, err := outbox.Lookup(db, waiting.ID); err != nil || !got.RunAt.Equal(at) || got.Version != 2 {
				t.Errorf("%+v, %v", got, err)
			}
			if err := outbox.Cancel(db, waiting.ID); err != nil {
				t.Errorf("Cancel: %v", err)
			}
		})
	}
}

// The database may be of another character set than the connection and the tables.
func TestCharacterSetOfTheDatabase(t *testing.T) { eachMySQL(t, characterSet) }

func characterSet(t *testing.T, newDSN func(testing.TB) string) {
	for _, charset := range []string{"latin1", "utf8mb3"} {
		for _, params := range []string{"", "&interpolateParams=true"} {
			t.Run(charset+params, func(t *testing.T) {
				db := openConfig(t, "mysql", newDSN(t)+params, &gorm.Config{})
				if err := db.Exec("ALTER DATABASE CHARACTER SET " + charset).Error; err != nil {
					t.Fatal(err)
				}
				const text = "🚀 漢 é"
				fails := errors.New(text)
				p := dbtest.Install(t, db, quick(), func(p *outbox.Plugin) {
					p.Handle("écho.漢", func(_ context.Context, a outbox.Args) (any, error) { return a["text"], nil })
					p.Handle("fail", func(context.Context) error { return fails })
				})
				dbtest.Start(t, p)
				args := outbox.Args{"text": text}
				batch, err := outbox.CreateBatch(db, outbox.NewTask{Func: "écho.漢", Args: args, Options: []outbox.CreateOption{outbox.Key(text)}},
					outbox.NewTask{Func: "écho.漢", Args: args, Options: []outbox.CreateOption{outbox.Key("? 漢 é")}})
				if err != nil {
					t.Fatal(err)
				}
				for _, task := range batch {
					past := dbtest.Ended(t, db, task.ID)
					if past.Status != outbox.StatusSuccess || past.Result.String() != fmt.Sprintf("%q", text) || *past.Key != *task.Key ||
						past.Args.String() != task.Args.String() {
						t.Errorf("%+v: %s, %s", past, past.Args, past.Result)
					}
				}
				retried := dbtest.Create(t, db, "fail", nil, outbox.MaxAttempts(2), outbox.Queue("漢"))
				past := dbtest.Ended(t, db, retried.ID)
				if !strings.Contains(*past.Error, text) || !strings.Contains(fmt.Sprint(past.Errors), text) || past.Queue != "漢" {
					t.Errorf("%+v: %s, %v", past, *past.Error, past.Errors)
				}
			})
		}
	}
}

// A lock that another transaction keeps for longer than the server waits undoes one statement; the
// whole transaction is run again, within one attempt.
func TestLockWaitIsRunAgain(t *testing.T) { eachMySQL(t, lockWait) }

func lockWait(t *testing.T, newDSN func(testing.TB) string) {
	db := openConfig(t, "mysql", newDSN(t)+"&innodb_lock_wait_timeout=1", &gorm.Config{})
	counters(t, db)
	other := db.Begin(&sql.TxOptions{})
	defer other.Rollback()
	if err := increment(other, 2); err != nil {
		t.Fatal(err)
	}
	var calls atomic.Int32
	p := dbtest.Install(t, db, quick(), func(p *outbox.Plugin) {
		p.Handle("both", func(_ context.Context, tx *gorm.DB) error {
			if calls.Add(1) == 2 {
				other.Rollback()
			}
			if err := tx.Model(&counter{}).Where("id = 1").Update("n", gorm.Expr("n + 1")).Error; err != nil {
				return err
			}
			return tx.Model(&counter{}).Where("id = 2").Update("n", gorm.Expr("n + 1")).Error
		})
	})
	dbtest.Start(t, p)
	past := dbtest.Ended(t, db, dbtest.Create(t, db, "both", nil).ID)
	if past.Status != outbox.StatusSuccess || past.Attempt != 1 || calls.Load() != 2 {
		t.Errorf("%s, attempt %d, %d calls: %s", past.Status, past.Attempt, calls.Load(), text(past.Error))
	}
	if n, m := counted(t, db, 1), counted(t, db, 2); n != 1 || m != 1 {
		t.Errorf("counted %d and %d", n, m)
	}
}

// MariaDB's innodb_snapshot_isolation undoes a transaction that would overwrite what it has not
// seen.
func TestSnapshotIsolationOfMariaDBIsRunAgain(t *testing.T) {
	db := openConfig(t, "mysql", testdb.MariaDBDSN(t)+"&innodb_snapshot_isolation=1", &gorm.Config{})
	counters(t, db)
	var calls atomic.Int32
	p := dbtest.Install(t, db, quick(), func(p *outbox.Plugin) {
		p.Handle("count", func(ctx context.Context, tx *gorm.DB) error {
			var c counter
			if err := tx.Take(&c, 1).Error; err != nil {
				return err
			}
			if calls.Add(1) == 1 {
				if err := increment(db, 1); err != nil {
					return err
				}
			}
			return tx.Model(&counter{}).Where("id = 1").Update("n", c.N+1).Error
		})
	})
	dbtest.Start(t, p)
	past := dbtest.Ended(t, db, dbtest.Create(t, db, "count", nil).ID)
	if past.Status != outbox.StatusSuccess || past.Attempt != 1 || calls.Load() != 2 {
		t.Errorf("%s, attempt %d, %d calls: %s", past.Status, past.Attempt, calls.Load(), text(past.Error))
	}
	if n := counted(t, db, 1); n != 2 {
		t.Errorf("counted %d", n)
	}
}

// On their way to the server texts become longer than they are, and a packet has its limit.
func TestLargeBatchFitsIntoPackets(t *testing.T) {
	t.Parallel()
	eachMySQL(t, largeBatch)
}

func largeBatch(t *testing.T, newDSN func(testing.TB) string) {
	for _, params := range []string{"", "&interpolateParams=true"} {
		db := openConfig(t, "mysql", newDSN(t)+params, &gorm.Config{})
		dbtest.Install(t, db, quick(), func(p *outbox.Plugin) { p.Handle("f", func(context.Context, outbox.Args) error { return nil }) })
		tasks := make([]outbox.NewTask, 700)
		for i := range tasks {
			tasks[i] = outbox.NewTask{Func: "f", Args: outbox.Args{"html": strings.Repeat(`<b>"`, 3000)}}
		}
		if _, err := outbox.CreateBatch(db, tasks...); err != nil {
			t.Errorf("with %q: %v", params, err)
		}
	}
}
