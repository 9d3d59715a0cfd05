package admin_test

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/admin"
	"github.com/gorm-outbox/outbox/internal/dbtest"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

// TestApplicationsCallbacks: what an application does to its own queries does not change what the
// pages show.
func TestApplicationsCallbacks(t *testing.T) {
	dbtest.EachInTurn(t, func(t *testing.T, db *gorm.DB) {
		d := open(t, db, admin.Options{})
		bad := d.failed()
		var ran atomic.Int32
		must(t, db.Callback().Query().Before("gorm:query").Register("tenant", func(tx *gorm.DB) {
			ran.Add(1)
			tx.Where("1 = 0")
		}))
		must(t, db.Callback().Row().Before("gorm:row").Register("tenant", func(*gorm.DB) { ran.Add(1) }))
		for _, page := range []string{"tasks", "tasks?state=failed", "tasks/" + bad.ID, "functions", "", "processes", "audit", "api/v1/tasks", "export?format=csv"} {
			text := status(t, d.get(page), 200)
			if page != "processes" && page != "audit" {
				has(t, text, "mail.send")
			}
		}
		if n := ran.Load(); n > 0 {
			t.Errorf("the application's callbacks ran %d times", n)
		}
		var history []outbox.HistoryModel
		if must(t, db.Find(&history).Error); ran.Load() == 0 || len(history) != 0 {
			t.Error("the callback does nothing")
		}
	})
}

// TestManyAskOnce: of many who open the overview at once, one asks the database.
func TestManyAskOnce(t *testing.T) {
	dbtest.EachInTurn(t, func(t *testing.T, db *gorm.DB) {
		heard := &listener{Interface: logger.Discard}
		db.Logger = heard
		d := open(t, db, admin.Options{})
		heard.take()
		status(t, d.get(""), 200)
		alone := len(heard.take())
		many := open2(t, d)
		heard.take()
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() { status(t, many.get(""), 200) })
		}
		all.Wait()
		if n := len(heard.take()); n != alone || n == 0 {
			t.Errorf("eight ask with %d statements, one with %d", n, alone)
		}
	})
}

// TestChartCountsOnce: a bar that is over has been counted, and is not counted with each refresh.
func TestChartCountsOnce(t *testing.T) {
	dbtest.EachInTurn(t, func(t *testing.T, db *gorm.DB) {
		heard := &listener{Interface: logger.Discard}
		db.Logger = heard
		d := open(t, db, admin.Options{})
		bad := d.failed()
		heard.take()
		first := status(t, d.get("?range=7d"), 200)
		all := len(heard.take())
		status(t, d.post("tasks/"+bad.ID+"/rerun", form(bad.Version)), 303) // the next page asks again
		d.failed()
		heard.take()
		again := status(t, d.get("?range=7d"), 200)
		if n := len(heard.take()); n > all-50 || n < 10 {
			t.Errorf("it asks with %d statements, then with %d", all, n)
		}
		has(t, first, "<td>0</td><td>1</td></tr>\n")
		has(t, again, "<td>0</td><td>3</td></tr>\n") // the last bar is counted again
	})
}

func TestETag(t *testing.T) {
	dbtest.EachInTurn(t, func(t *testing.T, db *gorm.DB) {
		d := open(t, db, admin.Options{})
		task := d.create(outbox.StartAfter(time.Hour))
		for _, path := range []string{"api/v1/tasks", "api/v1/tasks/" + task.ID, "api/v1/audit", "api/v1/overview"} {
			w := d.get(path)
			status(t, w, 200)
			tag := w.Header().Get("ETag")
			if tag == "" {
				t.Fatalf("%s has none", path)
			}
			for header, want := range map[string]int{tag: 304, `"x", ` + tag[2:]: 304, "*": 304, `W/"x"`: 200} {
				got := d.send("GET", path, "", "", "If-None-Match", header)
				if text := status(t, got, want); want == 304 && text != "" {
					t.Errorf("304 with a body: %s", text)
				}
			}
			status(t, d.post("tasks/"+task.ID+"/reschedule", form(d.task(task.ID).Version, "at", "2099-01-02")), 303)
			status(t, d.send("GET", path, "", "", "If-None-Match", tag), 200)
		}
	})
}

// TestListsAreNeverNull: what has nothing in it is an empty list, so that a program need not ask.
func TestListsAreNeverNull(t *testing.T) {
	d := open(t, testdb.SQLite(t), admin.Options{})
	hasNot(t, status(t, d.get("api/v1/overview"), 200), "null")
	task := d.create()
	must(t, d.db.Model(task).Updates(map[string]any{"state": "running", "process_id": "p-1"}).Error)
	must(t, d.db.Create(&outbox.ProcessModel{ID: "p-1", Functions: outbox.JSON(`null`), Queues: outbox.JSON(`null`), StartedAt: time.Now(), BeatAt: time.Now()}).Error)
	for _, page := range []string{"tasks/" + task.ID, "tasks?state=failed", "functions", "processes", "audit", "overview"} {
		hasNot(t, status(t, d.get("api/v1/"+page), 200), "null")
	}
}
