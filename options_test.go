package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

func TestBadOptions(t *testing.T) {
	for _, c := range []struct {
		name string
		opts outbox.Options
		want string
	}{
		{"scan", outbox.Options{Scan: "often"}, `Scan "often": expected`},
		{"scan too often", outbox.Options{Scan: "@every 1ms"}, "below 10ms"},
		{"scan that never comes", outbox.Options{Scan: "0 0 31 2 *"}, "never comes"},
		{"no slots", outbox.Options{Concurrency: -1}, "Concurrency -1 is not between 1 and 100000"},
		{"too many slots", outbox.Options{Concurrency: 100_001}, "Concurrency 100001"},
		{"heartbeat too often", outbox.Options{Heartbeat: time.Millisecond}, "Heartbeat 1ms is below 10ms"},
		{"negative heartbeat", outbox.Options{Heartbeat: -time.Second}, "Heartbeat -1s"},
		{"limit below three heartbeats", outbox.Options{Heartbeat: time.Second, HeartbeatLimit: 2 * time.Second}, "HeartbeatLimit 2s is below three Heartbeats of 1s"},
		{"small arguments", outbox.Options{MaxArgsBytes: 255}, "MaxArgsBytes 255 is not between"},
		{"small results", outbox.Options{MaxResultBytes: -1}, "MaxResultBytes -1"},
		{"large errors", outbox.Options{MaxErrorBytes: 65 << 20}, "MaxErrorBytes 68157440"},
		{"an empty queue", outbox.Options{Queues: []string{"a", ""}}, "Queues: is empty"},
		{"a long queue", outbox.Options{Queues: []string{strings.Repeat("q", 65)}}, "has 65 bytes"},
		{"a nil hook", outbox.Options{Hooks: []outbox.Hooks{outbox.NopHooks{}, nil}}, "Hooks[1] is nil"},
		{"a nil waker", outbox.Options{Wakers: []outbox.Waker{nil}}, "Wakers[0] is nil"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := testdb.SQLite(t).Use(outbox.New(c.opts))
			if err == nil || !strings.HasPrefix(err.Error(), "outbox: bad options: ") || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v; want %q", err, c.want)
			}
		})
	}
	t.Run("not installed after all", func(t *testing.T) {
		db := testdb.SQLite(t)
		p := outbox.New(outbox.Options{Concurrency: -1})
		if err := db.Use(p); err == nil {
			t.Fatal("accepted")
		}
		if err := p.Migrate(t.Context()); !errors.Is(err, outbox.ErrNotInstalled) {
			t.Errorf("got %v", err)
		}
	})
}

func TestZeroOptions(t *testing.T) {
	if err := testdb.SQLite(t).Use(outbox.New(outbox.Options{})); err != nil {
		t.Error(err)
	}
	if err := testdb.SQLite(t).Use(outbox.New(outbox.Options{ShutdownGrace: -1, CancelGrace: -1, RetainSuccess: -1, RetainErrors: -1})); err != nil {
		t.Errorf("negative where that means none: %v", err)
	}
}

func TestBadCreateOptions(t *testing.T) {
	noon := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name string
		opt  outbox.CreateOption
		want string
	}{
		{"the zero time", outbox.StartAt(time.Time{}), "StartAt: the zero time"},
		{"a year that databases do not store", outbox.StartAt(noon.AddDate(8000, 0, 0)), "StartAt: year 10026"},
		{"before now by a duration", outbox.StartAfter(-1), "StartAfter: -1ns is negative"},
		{"another form of time", outbox.StartTime("tomorrow"), `StartTime: "tomorrow" is not a time of the form "2006-01-02 15:04:05"`},
		{"year 0", outbox.StartTime("0000-05-05 00:00:00"), "StartTime: year 0"},
		{"no attempts", outbox.MaxAttempts(0), "MaxAttempts: 0 is not between 1 and 10000"},
		{"too many attempts", outbox.MaxAttempts(10_001), "MaxAttempts: 10001"},
		{"negative limit", outbox.Timeout(-1), "Timeout: -1ns is negative"},
		{"no key", outbox.Key(""), "Key: is empty"},
		{"a long key", outbox.Key(strings.Repeat("é", 128)), "Key: has 256 bytes; at most 255"},
		{"a key with NUL", outbox.Key("a\x00"), `Key: "a\x00" is not valid text`},
		{"a key that is not UTF-8", outbox.Key("\xff"), "is not valid text"},
		{"no queue", outbox.Queue(""), "Queue: is empty"},
		{"priority 0", outbox.Priority(0), "Priority: 0 is not between 1 and 4"},
		{"priority 5", outbox.Priority(5), "Priority: 5"},
		{"nil", nil, "option 0 is nil"},
	} {
		t.Run(c.name, func(t *testing.T) {
			db := testdb.SQLite(t)
			dbtest.Install(t, db, outbox.Options{ProducerOnly: true}, nil)
			_, err := outbox.Create(db, "a.b", nil, c.opt)
			if !errors.Is(err, outbox.ErrBadOption) || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "outbox: create a.b: ") {
				t.Errorf("got %v; want %q", err, c.want)
			}
			if n := dbtest.Count(t, db, &outbox.TaskModel{}); n != 0 {
				t.Errorf("%d tasks were inserted", n)
			}
		})
	}
}

func TestOptionsOfATask(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		dbtest.Install(t, db, outbox.Options{ProducerOnly: true}, nil)
		t.Run("none", func(t *testing.T) {
			got := dbtest.Create(t, db, "a.b", nil)
			if got.MaxAttempts != 1 || got.TimeoutMS != 0 || got.Key != nil || got.Queue != "default" || got.Priority != 2 || !got.RunAt.Equal(got.CreatedAt) {
				t.Errorf("got %+v", got)
			}
		})
		t.Run("the later one holds", func(t *testing.T) {
			got := dbtest.Create(t, db, "a.b", nil, outbox.StartAt(time.Now().Add(time.Hour)), outbox.StartAfter(0), outbox.Priority(1), outbox.Priority(4))
			if got.Priority != 4 || !got.RunAt.Equal(got.CreatedAt) {
				t.Errorf("got %+v", got)
			}
		})
		t.Run("a time limit is rounded up", func(t *testing.T) {
			if got := dbtest.Create(t, db, "a.b", nil, outbox.Timeout(1)); got.TimeoutMS != 1 {
				t.Errorf("got %d ms", got.TimeoutMS)
			}
		})
		t.Run("the longest delay is not early", func(t *testing.T) {
			got := dbtest.Create(t, db, "a.b", nil, outbox.StartAfter(math.MaxInt64))
			if got.RunAt.Sub(got.CreatedAt) < 290*365*24*time.Hour {
				t.Errorf("due at %v", got.RunAt)
			}
		})
	})
}

// metaHook gives every task a text.
type metaHook struct {
	outbox.NopHooks
	text string
}

func (h metaHook) OnCreate(_ context.Context, task *outbox.TaskModel) error {
	task.Meta = outbox.Meta{"trace": h.text}
	return nil
}

func TestMetaOfAHook(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       string // in the error
	}{
		{"kept as it is", "äöü \"quoted\" \\ \x00 <b>", ""},
		{"too large", strings.Repeat("x", 300), "over the limit of 256 (Options.MaxArgsBytes)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
				dbtest.Install(t, db, outbox.Options{ProducerOnly: true, MaxArgsBytes: 256, Hooks: []outbox.Hooks{metaHook{text: c.text}}}, nil)
				err := db.Transaction(func(tx *gorm.DB) error {
					task, err := outbox.Create(tx, "a.b", nil)
					if (err == nil) != (c.want == "") || !strings.Contains(fmt.Sprint(err), c.want) {
						t.Errorf("got %v, want %q", err, c.want)
					}
					if err != nil {
						return tx.Exec("SELECT 1").Error // still usable
					}
					got, _, err := outbox.Lookup(tx, task.ID)
					if err == nil && got.Meta["trace"] != c.text {
						err = fmt.Errorf("got %q", got.Meta)
					}
					return err
				})
				if err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func TestSecretsStayOutOfTheLog(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		var log strings.Builder
		logger := slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		p := dbtest.Install(t, db, outbox.Options{Logger: logger}, func(p *outbox.Plugin) {
			p.Handle("a.ok", func(context.Context, outbox.Args) (string, error) { return "secret-result", nil })
			p.Handle("a.strict", func(context.Context, struct{ N int }) error { return nil })
		})
		dbtest.Create(t, db, "a.ok", outbox.Args{"token": "secret-argument"})
		bad := dbtest.Create(t, db, "a.strict", outbox.Args{"N": 1})
		if err := db.Model(bad).Update("args", outbox.JSON(`{"N":"secret-text"}`)).Error; err != nil {
			t.Fatal(err)
		}
		if n, err := p.RunDue(t.Context()); err != nil || n == 0 {
			t.Fatalf("got %d, %v", n, err)
		}
		if !strings.Contains(log.String(), "a.ok") || !strings.Contains(log.String(), "a.strict") {
			t.Errorf("the log does not tell of the tasks:\n%s", log.String())
		}
		if strings.Contains(log.String(), "secret") {
			t.Errorf("the log has arguments or results:\n%s", log.String())
		}
	})
}
