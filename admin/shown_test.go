package admin_test

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/admin"
	"github.com/gorm-outbox/outbox/internal/dbtest"
)

// TestBulkTouchesOnlyWhatWasShown: one of two tasks goes and another comes to match, so the number
// is the same.
func TestBulkTouchesOnlyWhatWasShown(t *testing.T) {
	dbtest.EachInTurn(t, func(t *testing.T, db *gorm.DB) {
		d := open(t, db, admin.Options{})
		for name, change := range map[string]func(action, filter string, swap func()) string{
			"a form": func(action, filter string, swap func()) string {
				text := status(t, d.get("tasks?"+filter), 200)
				swap()
				v := url.Values{"action": {action}, "filter": {filter}, "all": {"1"}, "at": {"2099-01-01"}, "confirmed": {"yes"},
					"asof": {strings.ReplaceAll(asOf.FindStringSubmatch(text)[1], "&#43;", "+")}, "count": total.FindStringSubmatch(text)[1:], "shown": which.FindStringSubmatch(text)[1:]}
				w := d.post("tasks/bulk", v)
				status(t, w, 303)
				has(t, w.Header().Get("Location"), "skipped=changed.1")
				return w.Header().Get("Location")
			},
			"JSON": func(action, filter string, swap func()) string {
				list := decode[struct {
					AsOf  string `json:"as_of"`
					Count int
					Shown string
				}](t, status(t, d.get("api/v1/tasks?limit=1&"+filter), 200))
				swap()
				at := ""
				if action == "reschedule" {
					at = `"at":"2099-01-01",`
				}
				queue := strings.TrimPrefix(filter, "state=scheduled&queue=")
				return status(t, d.postJSON("api/v1/tasks/bulk", fmt.Sprintf(`{"action":%q,%s"filter":{"state":"scheduled","queue":%q},"as_of":%q,"count":%d,"shown":%q}`,
					action, at, queue, list.AsOf, list.Count, list.Shown)), 200)
			},
		} {
			for _, action := range []string{"cancel", "run_now", "reschedule"} {
				t.Run(name+", "+action, func(t *testing.T) {
					queue := outbox.Queue(strings.ReplaceAll(name, " ", "") + action)
					a, b, c := d.create(queue, outbox.StartAfter(time.Hour)), d.create(queue, outbox.StartAfter(time.Hour)), d.create(queue, outbox.StartAfter(time.Hour))
					must(t, db.Model(c).Update("state", "parked").Error)
					got := change(action, "state=scheduled&queue="+c.Queue, func() {
						must(t, outbox.Cancel(db, a.ID))
						must(t, db.Model(c).Update("state", "pending").Error)
					})
					if !strings.Contains(got, "n=1&") && !strings.HasPrefix(got, `{"changed":1,"skipped":[{"id":"`+c.ID+`","reason":"changed"}]}`) {
						t.Errorf("got %s", got)
					}
					if task := d.task(c.ID); task.Version != c.Version {
						t.Error("what was not shown was changed")
					}
					if task, past, err := outbox.Lookup(db, b.ID); err != nil || past == nil && task.Version == b.Version {
						t.Errorf("what was shown was not changed: %v", err)
					}
				})
			}
		}
	})
}

// TestBulkOfMoreThanIsShown: of more than 10,000 the first form takes those that its list has seen,
// and says that there is more.
func TestBulkOfMoreThanIsShown(t *testing.T) {
	dbtest.EachInTurn(t, func(t *testing.T, db *gorm.DB) {
		d := open(t, db, admin.Options{})
		fill(t, db, "11300")
		must(t, db.Exec("DELETE FROM outbox_tasks WHERE id <> 't-1'").Error)
		text := status(t, d.get("tasks?state=done"), 200)
		has(t, text, "10,000 of those that match", `name="count" value="10001"`)
		list := decode[struct{ Shown string }](t, status(t, d.get("api/v1/tasks?state=done"), 200))
		if n := len(list.Shown); n < 60_000 || n > 70_000 || list.Shown != which.FindStringSubmatch(text)[1] {
			t.Errorf("shown has %d bytes", n)
		}
		v := url.Values{"action": {"rerun"}, "filter": {"state=done&queue=none"}, "all": {"1"}, "count": {"10001"},
			"asof": {strings.ReplaceAll(asOf.FindStringSubmatch(text)[1], "&#43;", "+")}, "shown": {list.Shown}}
		w := d.post("tasks/bulk", v) // which has room for it
		status(t, w, 303)
		for _, bad := range []string{list.Shown + "AAAAAAA", "AAAA", "?"} {
			v.Set("shown", bad)
			has(t, status(t, d.post("tasks/bulk", v), 400), "shown must be")
		}
	})
}

// TestFilterFormIsWhole: a change of all that match takes no part of a list, and tells what it
// needs.
func TestFilterFormIsWhole(t *testing.T) {
	dbtest.EachInTurn(t, func(t *testing.T, db *gorm.DB) {
		d := open(t, db, admin.Options{})
		task := d.create(outbox.StartAfter(time.Hour))
		for _, part := range []string{`"limit":"10"`, `"cursor":"x"`} {
			has(t, status(t, d.postJSON("api/v1/tasks/bulk", `{"action":"rerun","filter":{"state":"failed",`+part+`},"as_of":"2026-01-01T00:00:00Z","count":1}`), 400), "There is no parameter")
		}
		for _, query := range []string{"limit=10", "cursor=x"} {
			has(t, status(t, d.get("export?format=csv&"+query), 400), "There is no parameter")
		}
		has(t, status(t, d.get("tasks?state=scheduled&limit=10"), 200), `href="./export?format=csv&amp;state=scheduled"`)
		has(t, status(t, d.postJSON("api/v1/tasks/bulk", `{"action":"cancel","tasks":[{"id":"`+task.ID+`"}]}`), 400), "version")
		has(t, status(t, d.postJSON("api/v1/tasks/bulk", `{"action":"cancel","filter":{"state":"scheduled"},"as_of":"2099-01-01T00:00:00Z","count":1}`), 400), "needs shown")
		first := d.get("api/v1/tasks?state=scheduled")
		status(t, first, 200)
		status(t, d.send("GET", "api/v1/tasks?state=scheduled", "", "", "If-None-Match", first.Header().Get("ETag")), 304)
		if _, past, err := outbox.Lookup(db, task.ID); past != nil || errors.Is(err, outbox.ErrNotFound) {
			t.Error("it is gone")
		}
	})
}
