package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/url"
	"os"
	"os/exec"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	_ "time/tzdata" // the zones of StartTime, wherever the tests run

	"gorm.io/driver/mysql"
	"gorm.io/driver/postgres"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

// badTimes cannot be start times.
var badTimes = []time.Time{
	{},
	time.Date(-1, 1, 1, 0, 0, 0, 0, time.UTC),
	time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC),
	time.Date(9999, 12, 31, 23, 0, 0, 0, time.FixedZone("west", -2*3600)), // in UTC it is the year 10000
	time.Date(9999, 12, 31, 23, 59, 59, 999_999_001, time.UTC),            // at microseconds it is the year 10000
}

func zone(t *testing.T, name string) *time.Location {
	t.Helper()
	loc, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return loc
}

func TestStartTime(t *testing.T) {
	const gap, twice, form = "does not exist in", "is ambiguous in", `of the form "2006-01-02 15:04:05"`
	tests := []struct{ zone, text, want string }{
		{"Europe/Berlin", "2026-03-29 01:59:59", "2026-03-29T00:59:59Z"},
		{"Europe/Berlin", "2026-03-29 02:00:00", gap},
		{"Europe/Berlin", "2026-03-29 02:30:00", gap},
		{"Europe/Berlin", "2026-03-29 03:00:00", "2026-03-29T01:00:00Z"},
		{"Europe/Berlin", "2026-10-25 01:59:59", "2026-10-24T23:59:59Z"},
		{"Europe/Berlin", "2026-10-25 02:00:00", twice},
		{"Europe/Berlin", "2026-10-25 02:30:00", twice},
		{"Europe/Berlin", "2026-10-25 02:59:59", twice},
		{"Europe/Berlin", "2026-10-25 03:00:00", "2026-10-25T02:00:00Z"},
		{"America/New_York", "2026-03-08 02:30:00", gap},
		{"America/New_York", "2026-11-01 01:30:00", twice},
		{"America/New_York", "2026-11-01 02:00:00", "2026-11-01T07:00:00Z"},
		{"Asia/Kathmandu", "2026-03-29 02:30:00", "2026-03-28T20:45:00Z"},
		{"Pacific/Chatham", "2026-04-05 03:00:00", twice},
		{"Pacific/Chatham", "2026-09-27 03:00:00", gap},
		{"Pacific/Chatham", "2026-09-27 02:44:59", "2026-09-26T13:59:59Z"},
		{"Australia/Lord_Howe", "2026-04-05 01:45:00", twice},
		{"Australia/Lord_Howe", "2026-10-04 02:15:00", gap},
		{"Australia/Lord_Howe", "2026-10-04 02:30:00", "2026-10-03T15:30:00Z"},
		{"Pacific/Apia", "2011-12-30 12:00:00", gap}, // a whole day
		{"UTC", "9999-12-31 23:59:59", "9999-12-31T23:59:59Z"},
		{"UTC", "2024-02-29 00:00:00", "2024-02-29T00:00:00Z"},
		{"UTC", "2026-01-02", form},
		{"UTC", "2026-01-02 15:04", form},
		{"UTC", "2026-01-02T15:04:05", form},
		{"UTC", "2026-01-02 15:04:05Z", form},
		{"UTC", "2026-01-02 15:04:05.5", form},
		{"UTC", "2026-1-2 15:04:05", form},
		{"UTC", " 2026-01-02 15:04:05", form},
		{"UTC", "2026-02-30 00:00:00", form},
		{"UTC", "2026-01-02 24:00:00", form},
		{"UTC", "2026-06-30 23:59:60", form},
		{"UTC", "10000-01-01 00:00:00", form},
		{"UTC", "tomorrow", form},
		{"UTC", "", form},
		{"UTC", "0000-01-01 00:00:00", "year 0"},
		{"UTC", "0001-01-01 00:00:00", "zero time"},
		{"America/New_York", "9999-12-31 23:59:59", "year 10000"},
	}
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		names := map[string]*gorm.DB{}
		for _, tt := range tests {
			t.Run(tt.zone+" "+tt.text, func(t *testing.T) {
				tx := names[tt.zone]
				if tx == nil { // another plugin on the same tables
					tx = db.Session(&gorm.Session{})
					config := *db.Config
					config.Plugins = map[string]gorm.Plugin{}
					tx.Config = &config
					dbtest.Install(t, tx, outbox.Options{ProducerOnly: true, Location: zone(t, tt.zone)}, nil)
					names[tt.zone] = tx
				}
				task, err := outbox.Create(tx, "f", nil, outbox.StartTime(tt.text))
				want, parsed := time.Parse(time.RFC3339, tt.want)
				if parsed != nil {
					if !errors.Is(err, outbox.ErrBadOption) || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "StartTime") {
						t.Fatalf("got %v, want ErrBadOption with %q", err, tt.want)
					}
					if (tt.want == gap || tt.want == twice) && !strings.Contains(err.Error(), tt.zone) {
						t.Errorf("%q does not name the location", err)
					}
					return
				}
				if err != nil || !task.RunAt.Equal(want) {
					t.Fatalf("got %+v, %v; want %v", task, err, want)
				}
			})
		}
	})
}

func TestStartAt(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		p, _ := shop(t, db, outbox.Options{})
		t.Run("keeps the instant, rounded up to microseconds", func(t *testing.T) {
			for _, at := range []time.Time{
				time.Date(2040, 1, 2, 3, 4, 5, 123_456_000, zone(t, "Asia/Tokyo")),
				time.Date(2040, 1, 2, 3, 4, 5, 123_456_001, zone(t, "America/Los_Angeles")),
				time.Date(2040, 1, 2, 3, 4, 5, 999_999_999, zone(t, "Asia/Kathmandu")),
				time.Date(2040, 1, 2, 3, 4, 5, 0, time.FixedZone("odd", 3600+1)),
				time.Date(9999, 12, 31, 23, 59, 59, 999_999_000, time.UTC),
				time.Date(9999, 12, 31, 0, 0, 0, 0, zone(t, "Asia/Tokyo")),
				time.Now().Add(time.Hour),
			} {
				want := at.Add(999 * time.Nanosecond).Truncate(time.Microsecond)
				task := dbtest.Create(t, db, cancelOrder, nil, outbox.StartAt(at))
				got, _, err := outbox.Lookup(db, task.ID)
				if err != nil || !got.RunAt.Equal(want) || !task.RunAt.Equal(want) || got.RunAt.Before(at) {
					t.Errorf("%v: returned %v, stored %v, %v", at, task.RunAt, got.RunAt, err)
				}
				if err := outbox.Reschedule(db, task.ID, at.Add(-time.Minute)); err != nil {
					t.Error(err)
				}
				if got, _, err := outbox.Lookup(db, task.ID); err != nil || !got.RunAt.Equal(want.Add(-time.Minute)) {
					t.Errorf("%v less a minute: stored %v, %v", at, got.RunAt, err)
				}
			}
		})
		t.Run("far future is not due", func(t *testing.T) {
			dbtest.Create(t, db, cancelOrder, nil, outbox.StartAfter(math.MaxInt64))
			if n, err := p.RunDue(t.Context()); n != 0 || err != nil {
				t.Errorf("%d ran, %v", n, err)
			}
		})
		t.Run("the past is due at once", func(t *testing.T) {
			for _, at := range []time.Time{time.Unix(0, 0), time.Now(), time.Date(1, 1, 1, 0, 0, 1, 0, time.UTC)} {
				task := dbtest.Create(t, db, cancelOrder, nil, outbox.StartAt(at))
				if task.RunAt.After(task.CreatedAt) {
					t.Errorf("%v: run at %v, created at %v", at, task.RunAt, task.CreatedAt)
				}
			}
			if n, err := p.RunDue(t.Context()); n != 3 || err != nil {
				t.Errorf("%d ran, %v", n, err)
			}
		})
		t.Run("no time", func(t *testing.T) {
			for _, at := range badTimes {
				if _, err := outbox.Create(db, cancelOrder, nil, outbox.StartAt(at)); !errors.Is(err, outbox.ErrBadOption) {
					t.Errorf("%v: got %v", at, err)
				}
			}
		})
	})
}

func TestOptions(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		shop(t, db, outbox.Options{})
		type made = *outbox.TaskModel
		for name, tt := range map[string]struct {
			opts []outbox.CreateOption
			good func(made) bool
		}{
			"defaults": {nil, func(m made) bool {
				return m.Priority == 2 && m.Queue == "default" && m.MaxAttempts == 1 && m.TimeoutMS == 0 && m.Key == nil && m.RunAt.Equal(m.CreatedAt)
			}},
			"the later one holds": {[]outbox.CreateOption{outbox.Priority(1), outbox.Priority(4), outbox.StartAt(time.Now().Add(9 * time.Hour)), outbox.StartAfter(0)},
				func(m made) bool { return m.Priority == 4 && m.RunAt.Equal(m.CreatedAt) }},
			"StartAfter":                {[]outbox.CreateOption{outbox.StartAfter(1500 * time.Millisecond)}, func(m made) bool { return m.RunAt.Sub(m.CreatedAt) == 1500*time.Millisecond }},
			"StartAfter is never early": {[]outbox.CreateOption{outbox.StartAfter(1)}, func(m made) bool { return m.RunAt.After(m.CreatedAt) }},
			"StartAfter for ever":       {[]outbox.CreateOption{outbox.StartAfter(math.MaxInt64)}, func(m made) bool { return m.RunAt.Year() > 2300 }},
			"MaxAttempts":               {[]outbox.CreateOption{outbox.MaxAttempts(10_000)}, func(m made) bool { return m.MaxAttempts == 10_000 }},
			"Timeout is rounded":        {[]outbox.CreateOption{outbox.Timeout(1)}, func(m made) bool { return m.TimeoutMS == 1 }},
			"Timeout for ever":          {[]outbox.CreateOption{outbox.Timeout(math.MaxInt64)}, func(m made) bool { return m.TimeoutMS > 9e12 && time.Duration(m.TimeoutMS)*time.Millisecond > 0 }},
			"Queue":                     {[]outbox.CreateOption{outbox.Queue(strings.Repeat("é", 32))}, func(m made) bool { return m.Queue == strings.Repeat("é", 32) }},
			"Key":                       {[]outbox.CreateOption{outbox.Key(strings.Repeat("k", 255))}, func(m made) bool { return len(*m.Key) == 255 }},
			"Key of odd letters":        {[]outbox.CreateOption{outbox.Key(`{tasks} $1 ? ' " \ <&> 😀 {now} %s`)}, func(m made) bool { return *m.Key == `{tasks} $1 ? ' " \ <&> 😀 {now} %s` }},
		} {
			t.Run(name, func(t *testing.T) {
				task := dbtest.Create(t, db, cancelOrder, nil, tt.opts...)
				stored, _, err := outbox.Lookup(db, task.ID)
				if err != nil || !tt.good(task) || !tt.good(stored) {
					t.Errorf("returned %+v\nstored %+v, %v", task, stored, err)
				}
			})
		}
		for name, tt := range map[string]struct {
			opt  outbox.CreateOption
			says string
		}{
			"StartAfter negative": {outbox.StartAfter(-1), "StartAfter: -1ns is negative"},
			"MaxAttempts 0":       {outbox.MaxAttempts(0), "MaxAttempts: 0 is not between 1 and 10000"},
			"MaxAttempts 10001":   {outbox.MaxAttempts(10_001), "MaxAttempts: 10001"},
			"Timeout negative":    {outbox.Timeout(-time.Second), "Timeout: -1s is negative"},
			"Key empty":           {outbox.Key(""), "Key: is empty"},
			"Key too long":        {outbox.Key(strings.Repeat("x", 256)), "Key: has 256 bytes; at most 255"},
			"Key with NUL":        {outbox.Key("a\x00"), "Key: "},
			"Key not UTF-8":       {outbox.Key("\xff"), "Key: "},
			"Queue empty":         {outbox.Queue(""), "Queue: is empty"},
			"Queue too long":      {outbox.Queue(strings.Repeat("x", 65)), "Queue: has 65 bytes; at most 64"},
			"Priority 0":          {outbox.Priority(0), "Priority: 0 is not between 1 and 4"},
			"Priority 5":          {outbox.Priority(5), "Priority: 5 is not between 1 and 4"},
			"StartAt zero":        {outbox.StartAt(time.Time{}), "StartAt: the zero time"},
			"nil":                 {nil, "option 0 is nil"},
		} {
			t.Run(name, func(t *testing.T) {
				before := dbtest.Count(t, db, &outbox.TaskModel{})
				err := db.Transaction(func(tx *gorm.DB) error {
					_, err := outbox.Create(tx, cancelOrder, nil, tt.opt)
					if !errors.Is(err, outbox.ErrBadOption) || !strings.Contains(err.Error(), tt.says) || !strings.Contains(err.Error(), cancelOrder) {
						t.Errorf("got %v, want ErrBadOption with %q", err, tt.says)
					}
					return tx.Create(&shopOrder{}).Error
				})
				if err != nil || dbtest.Count(t, db, &outbox.TaskModel{}) != before {
					t.Errorf("not usable or something inserted: %v", err)
				}
			})
		}
		t.Run("nil is refused by Cancel and Reschedule", func(t *testing.T) {
			task := dbtest.Create(t, db, cancelOrder, nil, outbox.Key("mine"))
			_, cancelKey := outbox.CancelKey(db, "mine", nil)
			for _, err := range []error{outbox.Cancel(db, task.ID, nil), cancelKey, outbox.Reschedule(db, task.ID, time.Now(), nil)} {
				if !errors.Is(err, outbox.ErrBadOption) || !strings.Contains(err.Error(), "option 0 is nil") {
					t.Errorf("got %v", err)
				}
			}
		})
	})
}

// The compiler refuses an option that a function does not understand.
func TestOptionsAreTyped(t *testing.T) {
	create, rerun, change := reflect.TypeFor[outbox.CreateOption](), reflect.TypeFor[outbox.RerunOption](), reflect.TypeFor[outbox.ChangeOption]()
	for name, tt := range map[string]struct {
		option any
		for_   []reflect.Type
	}{
		"Priority":  {outbox.Priority(1), []reflect.Type{create, rerun}},
		"WithArgs":  {outbox.WithArgs(nil), []reflect.Type{rerun}},
		"IfVersion": {outbox.IfVersion(1), []reflect.Type{change}},
	} {
		for _, of := range []reflect.Type{create, rerun, change} {
			if is := reflect.TypeOf(tt.option).Implements(of); is != slices.Contains(tt.for_, of) {
				t.Errorf("%s is an %s: %v", name, of.Name(), is)
			}
		}
	}
}

type checked struct{ N int }

func (c checked) Validate() error {
	if c.N < 0 {
		return fmt.Errorf("N is below zero: %d", c.N)
	}
	return nil
}

func TestValidateIsCalledAtCreateAndAtRun(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		p := dbtest.Install(t, db, outbox.Options{}, func(p *outbox.Plugin) {
			p.Handle("by.value", func(context.Context, checked) error { return nil })
			p.Handle("by.pointer", func(context.Context, *checked) error { return nil })
		})
		for _, path := range []string{"by.value", "by.pointer"} {
			if _, err := outbox.Create(db, path, checked{-1}); !errors.Is(err, outbox.ErrBadArgs) || !strings.Contains(err.Error(), "N is below zero: -1") {
				t.Errorf("%s: got %v", path, err)
			}
			task := dbtest.Create(t, db, path, checked{1})
			mustRun(t, db, `UPDATE outbox_tasks SET args = '{"N":-7}' WHERE id = '`+task.ID+`'`)
			if n, err := p.RunDue(t.Context()); n > 1 || err != nil {
				t.Fatalf("%d ran, %v", n, err)
			}
			h := dbtest.Ended(t, db, task.ID)
			if h.Status != outbox.StatusError || h.Reason != outbox.ReasonBadArgs || !strings.Contains(*h.Error, "N is below zero: -7") {
				t.Errorf("%s ended as %+v", path, h)
			}
		}
	})
}

var sqliteText = regexp.MustCompile(`^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}\+00:00$`)

func TestInstantsAcrossTimeZones(t *testing.T) {
	t.Parallel()
	for _, d := range dbtest.Databases {
		t.Run(d.Name, func(t *testing.T) {
			dsn := d.DSN(t)
			db := openZone(t, d.Dialect, dsn, "Europe/Berlin")
			_, ran := shop(t, db, outbox.Options{})
			at := time.Date(2040, 1, 2, 3, 4, 5, 123_456_000, time.UTC)
			for _, place := range []struct{ process, session string }{
				{"Asia/Tokyo", "America/Los_Angeles"}, {"America/Los_Angeles", "Asia/Tokyo"}, {"Asia/Kathmandu", "Asia/Kathmandu"},
			} {
				t.Run(place.process+" in a session of "+place.session, func(t *testing.T) {
					due := dbtest.Create(t, db, cancelOrder, nil)
					var early []string
					for _, loc := range []string{"UTC", "Asia/Tokyo", "America/Los_Angeles"} {
						early = append(early, dbtest.Create(t, db, cancelOrder, nil, outbox.StartAt(time.Now().Add(time.Hour).In(zone(t, loc)))).ID)
					}
					cmd := exec.Command(os.Args[0], "-test.run=^TestInstantsChild$", "-test.v")
					cmd.Env = append(os.Environ(), "TZ="+place.process, childEnv+"="+strings.Join([]string{d.Dialect, dsn, place.session}, "\n"))
					before := time.Now()
					out, err := cmd.CombinedOutput()
					if err != nil {
						t.Fatalf("%v\n%s", err, out)
					}
					after := time.Now()
					made := map[string]string{}
					for line := range strings.Lines(string(out)) {
						if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
							made[name] = value
						}
					}
					if made["ran"] != "2" { // its own and due
						t.Errorf("%s ran, want 2\n%s", made["ran"], out)
					}
					if h := dbtest.Ended(t, db, due.ID); h.FinishedAt.Before(before.Add(-time.Second)) || h.FinishedAt.After(after.Add(time.Second)) {
						t.Errorf("finished at %v, between %v and %v", h.FinishedAt, before, after)
					}
					for _, id := range append(early, made["after"], made["at"], made["wall"]) {
						if task, _, err := outbox.Lookup(db, id); err != nil || task == nil {
							t.Errorf("task %s ran early, %v", id, err)
						}
					}
					wall := time.Date(2040, 6, 1, 12, 0, 0, 0, zone(t, place.process))
					for name, want := range map[string]time.Time{"at": at, "wall": wall} {
						if task, _, err := outbox.Lookup(db, made[name]); err != nil || !task.RunAt.Equal(want) {
							t.Errorf("%s: %v, want %v; %v", name, task.RunAt, want, err)
						}
						var row outbox.TaskModel
						if err := db.Take(&row, "id = ?", made[name]).Error; err != nil || !row.RunAt.Equal(want) {
							t.Errorf("%s read with GORM: %v, want %v; %v", name, row.RunAt, want, err)
						}
						column := "run_at || ''"
						if d.Name == "postgres" {
							column = "to_char(run_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || '+00:00'"
						}
						if d.Dialect == "mysql" {
							column = "CONCAT(run_at, '+00:00')"
						}
						var text string
						if err := db.Raw("SELECT "+column+" FROM outbox_tasks WHERE id = ?", made[name]).Scan(&text).Error; err != nil ||
							text != want.UTC().Format("2006-01-02 15:04:05.000000+00:00") {
							t.Errorf("%s in SQL: %q, %v", name, text, err)
						}
					}
					hour, _, err := outbox.Lookup(db, made["after"])
					if err != nil || hour.RunAt.Before(before.Add(time.Hour-time.Second)) || hour.RunAt.After(after.Add(time.Hour+time.Second)) {
						t.Errorf("after an hour: %+v, %v", hour, err)
					}
				})
			}
			select {
			case id := <-ran:
				t.Errorf("task %s ran in this process", id)
			default:
			}
			if d.Name == "sqlite" {
				for _, column := range []string{"outbox_tasks.run_at", "outbox_tasks.created_at", "outbox_history.run_at",
					"outbox_history.created_at", "outbox_history.started_at", "outbox_history.finished_at"} {
					table, column, _ := strings.Cut(column, ".")
					var texts []string
					if err := db.Raw("SELECT " + column + " || '' FROM " + table).Scan(&texts).Error; err != nil || len(texts) == 0 {
						t.Fatal(texts, err)
					}
					for _, s := range texts {
						if !sqliteText.MatchString(s) {
							t.Errorf("%s.%s holds %q", table, column, s)
						}
					}
				}
			}
		})
	}
}

func TestDateStyleOfTheSession(t *testing.T) {
	kind, dsn := "postgres", testdb.PostgresDSN(t)
	if !strings.Contains(dsn, "://") {
		t.Skip("the DSN has another form")
	}
	for _, style := range []string{"German", "SQL,DMY", "Postgres,MDY"} {
		t.Run(style, func(t *testing.T) {
			db := openZone(t, kind, dsn+"&datestyle="+url.QueryEscape(style)+"&intervalstyle=iso_8601", "Asia/Kolkata")
			p, ran := shop(t, db, outbox.Options{})
			at := time.Date(2040, 2, 3, 4, 5, 6, 789_000_000, time.UTC)
			if task := dbtest.Create(t, db, cancelOrder, nil, outbox.StartAt(at)); !task.RunAt.Equal(at) {
				t.Errorf("stored %v", task.RunAt)
			}
			task := dbtest.Create(t, db, cancelOrder, nil)
			if n, err := p.RunDue(t.Context()); n != 1 || err != nil {
				t.Fatalf("%d ran, %v", n, err)
			}
			if got := dbtest.Receive(t, ran); got != task.ID {
				t.Errorf("task %s ran", got)
			}
		})
	}
}

const childEnv = "OUTBOX_TEST_ZONE"

// openZone opens a database in a session of a time zone.
func openZone(t *testing.T, kind, dsn, session string) *gorm.DB {
	t.Helper()
	var dialector gorm.Dialector
	if kind == "sqlite" {
		dialector = sqlite.Open(dsn + "&_loc=" + session)
	} else if kind == "mysql" {
		zone, err := time.LoadLocation(session) // the server may not know its name
		if err != nil {
			t.Fatal(err)
		}
		dialector = mysql.Open(dsn + "&time_zone=" + url.QueryEscape("'"+time.Now().In(zone).Format("-07:00")+"'"))
	} else if strings.Contains(dsn, "://") {
		dialector = postgres.Open(dsn + "&timezone=" + session)
	} else {
		dialector = postgres.Open(dsn + " timezone=" + session)
	}
	db, err := gorm.Open(dialector, &gorm.Config{Logger: logger.Discard})
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

// TestInstantsChild is the other process of TestInstantsAcrossTimeZones.
func TestInstantsChild(t *testing.T) {
	place := strings.Split(os.Getenv(childEnv), "\n")
	if len(place) != 3 {
		t.Skip("for TestInstantsAcrossTimeZones")
	}
	if want := zone(t, os.Getenv("TZ")); !time.Date(2040, 6, 1, 12, 0, 0, 0, time.Local).Equal(time.Date(2040, 6, 1, 12, 0, 0, 0, want)) {
		t.Fatalf("the process is in %v, not in %v", time.Local, want)
	}
	db := openZone(t, place[0], place[1], place[2])
	p, _ := shop(t, db, outbox.Options{})
	fmt.Printf("\nnow=%s\n", dbtest.Create(t, db, cancelOrder, nil).ID)
	fmt.Printf("after=%s\n", dbtest.Create(t, db, cancelOrder, nil, outbox.StartAfter(time.Hour)).ID)
	fmt.Printf("at=%s\n", dbtest.Create(t, db, cancelOrder, nil, outbox.StartAt(time.Date(2040, 1, 2, 3, 4, 5, 123_456_000, time.UTC).Local())).ID)
	fmt.Printf("wall=%s\n", dbtest.Create(t, db, cancelOrder, nil, outbox.StartTime("2040-06-01 12:00:00")).ID)
	n, err := p.RunDue(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("ran=%d\n", n)
}
