package admin_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/admin"
	"github.com/gorm-outbox/outbox/internal/dbtest"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

var everyAction = []admin.Action{admin.View, admin.ViewArgs, admin.Rerun, admin.EditArgs, admin.RunNow, admin.Reschedule, admin.Cancel, admin.Discard}

// route is one that there is, with what it takes and what it needs beside View.
type route struct {
	path   string
	form   url.Values // or
	json   string     // of a change; a read has neither
	needs  []admin.Action
	status int // for who may: a change of a task that is not there says so
}

func (r route) method() string {
	if r.form == nil && r.json == "" {
		return "GET"
	}
	return "POST"
}

func (r route) send(d *desk, method string) int {
	switch {
	case method != "POST":
		return d.send(method, r.path, "", "").Code
	case r.json != "":
		return d.postJSON(r.path, r.json).Code
	}
	return d.post(r.path, r.form).Code
}

// everyRoute lists all that there is for a task that waits and one that has failed.
func everyRoute(waits, bad string) []route {
	list := []route{{path: "export?format=csv", status: 200}, {path: "export?format=ndjson", status: 200},
		{path: "tasks?args=x", needs: []admin.Action{admin.ViewArgs}, status: 200}, {path: "export?format=csv&args=x", needs: []admin.Action{admin.ViewArgs}, status: 200},
		{path: "api/v1/tasks?args=x", needs: []admin.Action{admin.ViewArgs}, status: 200}}
	for _, page := range []string{"", "tasks", "functions", "processes", "audit", "api/v1/overview", "api/v1/tasks", "api/v1/functions", "api/v1/processes", "api/v1/audit"} {
		list = append(list, route{path: page, status: 200})
	}
	for _, id := range []string{waits, bad} {
		list = append(list, route{path: "tasks/" + id, status: 200}, route{path: "api/v1/tasks/" + id, status: 200})
	}
	for _, a := range []admin.Action{admin.Rerun, admin.RunNow, admin.Reschedule, admin.Cancel, admin.Discard} {
		at, atJSON, shown := url.Values{"version": {"1"}}, "", `"filter":{"state":"failed"},"as_of":"2020-01-01T00:00:00Z","count":1,"shown":"AAAAAAA"`
		if a == admin.Reschedule {
			at.Set("at", "2099-01-01")
			atJSON = `,"at":"2099-01-01"`
		}
		needs := []admin.Action{a}
		list = append(list,
			route{path: "tasks/gone/" + string(a), form: at, needs: needs, status: 404},
			route{path: "api/v1/tasks/gone/" + string(a), json: `{"version":1` + atJSON + `}`, needs: needs, status: 404},
			route{path: "tasks/bulk", form: url.Values{"action": {string(a)}, "pick": {"gone.1"}, "confirmed": {"yes"}, "at": at["at"]}, needs: needs, status: 303},
			route{path: "tasks/bulk", form: url.Values{"action": {string(a)}, "all": {"1"}, "filter": {"state=failed"}, "asof": {"2020-01-01T00:00:00Z"}, "count": {"1"}, "shown": {"AAAAAAA"},
				"confirmed": {"yes"}, "at": at["at"]}, needs: needs, status: 303},
			route{path: "api/v1/tasks/bulk", json: `{"action":"` + string(a) + `","tasks":[{"id":"gone","version":1}]` + atJSON + `}`, needs: needs, status: 200},
			route{path: "api/v1/tasks/bulk", json: `{"action":"` + string(a) + `",` + shown + atJSON + `}`, needs: needs, status: 200})
	}
	edit := []admin.Action{admin.Rerun, admin.EditArgs}
	return append(list, route{path: "tasks/gone/rerun", form: url.Values{"version": {"1"}, "args": {"{}"}}, needs: edit, status: 404},
		route{path: "api/v1/tasks/gone/rerun", json: `{"version":1,"args":{}}`, needs: edit, status: 404})
}

// TestEveryRoute asks for every route with every method and every set of permissions of at most
// three: all that is needed lets in, and nothing less.
func TestEveryRoute(t *testing.T) {
	dbtest.EachInTurn(t, func(t *testing.T, db *gorm.DB) {
		may := map[admin.Action]bool{}
		signedIn := true
		d := open(t, db, admin.Options{Authorize: func(_ *http.Request, a admin.Action) (admin.Actor, error) {
			switch {
			case !signedIn:
				return admin.Actor{}, admin.ErrUnauthenticated
			case !may[a]:
				return admin.Actor{}, errors.New("no")
			}
			return admin.Actor{Name: "bob"}, nil
		}})
		bad, waits := d.failed(), d.create(outbox.StartAfter(time.Hour))
		routes := everyRoute(waits.ID, bad.ID)
		if len(routes) < 45 {
			t.Fatalf("%d routes", len(routes))
		}
		for _, r := range routes {
			name := fmt.Sprint(r.path, " ", r.form, r.json)
			signedIn = false
			if code := r.send(d, r.method()); code != 401 {
				t.Errorf("%s: signed out: status %d", name, code)
			}
			signedIn = true
			sets := [][]admin.Action{nil, everyAction, everyAction[1:]}
			for i, a := range everyAction {
				sets = append(sets, []admin.Action{a}, []admin.Action{admin.View, a}, slices.Delete(slices.Clone(everyAction), i, i+1))
				for _, b := range everyAction {
					sets = append(sets, []admin.Action{admin.View, a, b})
				}
			}
			for _, set := range sets {
				clear(may)
				for _, a := range set {
					may[a] = true
				}
				want := r.status
				for _, a := range append([]admin.Action{admin.View}, r.needs...) {
					if !may[a] {
						want = 403
					}
				}
				if code := r.send(d, r.method()); code != want {
					t.Errorf("%s: with %v status %d, want %d", name, set, code, want)
				}
			}
			for _, a := range everyAction {
				may[a] = true
			}
			for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "get"} {
				want := 405
				if method == r.method() || method == "HEAD" && r.method() == "GET" {
					want = r.status
				}
				if code := r.send(d, method); code != want {
					t.Errorf("%s %s: status %d, want %d", method, name, code, want)
				}
			}
		}
		if n := len(d.audit()); n != 0 {
			t.Errorf("%d rows of audit", n)
		}
	})
}

// TestNothingIsIgnored: what a request says and nobody reads is refused, with what would be read.
func TestNothingIsIgnored(t *testing.T) {
	d := open(t, testdb.SQLite(t), admin.Options{})
	bad, waits := d.failed(), d.create(outbox.StartAfter(time.Hour))
	for _, r := range everyRoute(waits.ID, bad.ID) {
		joint := "?"
		if strings.Contains(r.path, "?") {
			joint = "&"
		}
		odd := r
		odd.path += joint + "odd=1"
		if code := odd.send(d, r.method()); code != 400 {
			t.Errorf("%s: status %d", odd.path, code)
		}
		if r.form != nil {
			odd = r
			odd.form = url.Values{"odd": {"1"}}
			for name, values := range r.form {
				odd.form[name] = values
			}
			if code := odd.send(d, "POST"); code != 400 {
				t.Errorf("%s with an odd field: status %d", r.path, code)
			}
		}
		if r.json != "" {
			odd = r
			odd.json = `{"odd":1,` + r.json[1:]
			if code := odd.send(d, "POST"); code != 400 {
				t.Errorf("%s with an odd member: status %d", r.path, code)
			}
		}
	}
	for query, says := range map[string]string{"tasks?did=burn&n=1": "discard", "tasks?n=1": "did", "tasks?did=rerun&n=-1": "10000", "tasks?did=rerun&n=1&skipped=odd.1": "key_held",
		"tasks?did=rerun&n=1&skipped=running.x": "running", "?range=1h&range=7d": "twice", "audit?actor=a&actor=b": "twice", "tasks?func=a&func=b": "twice"} {
		has(t, status(t, d.get(query), 400), says)
	}
	has(t, status(t, d.post("tasks/"+waits.ID+"/cancel", url.Values{"version": {"1", "2"}}), 400), "twice")
	d.task(waits.ID)
}

// TestWhatWasTypedStays: arguments that do not fit come back with the reason why, and so does what
// was said.
func TestWhatWasTypedStays(t *testing.T) {
	dbtest.EachInTurn(t, func(t *testing.T, db *gorm.DB) {
		d := open(t, db, admin.Options{})
		bad := d.failed()
		text := status(t, d.post("tasks/"+bad.ID+"/rerun", form(bad.Version, "args", `{"to": 7, "</textarea>": 1}`, "reason", "typed <long>")), 422)
		has(t, text, "do not fit the function: key", "Nothing was changed", `<details id="edit" open>`, `{&#34;to&#34;: 7, &#34;&lt;/textarea&gt;&#34;: 1}</textarea>`, `value="typed &lt;long&gt;"`)
		hasNot(t, text, "data-live")
		has(t, status(t, d.postJSON("api/v1/tasks/"+bad.ID+"/rerun", fmt.Sprintf(`{"version":%d,"args":{"to":7}}`, bad.Version)), 422), "key \\\"to\\\"", "string")
		has(t, status(t, d.post("tasks/"+bad.ID+"/rerun", form(99)), 409), `href="./../../tasks/`+bad.ID+`">See it as it is now`)
		has(t, status(t, d.post("tasks/bulk", url.Values{"action": {"rerun"}, "filter": {"state=failed&func=mail.send"}}), 400), "No task is picked", "Failed tasks</h1>", `name="func" value="mail.send"`)
		hasNot(t, status(t, d.post("tasks/nope/cancel", form(1)), 404), "tasks/nope")

		// Stored arguments that do not fit any more: why may quote them, so it is said to those who
		// may see them.
		must(t, db.Model(&outbox.HistoryModel{}).Where("id = ?", bad.ID).Update("args", outbox.JSON(`{"secret":1,"to":"a"}`)).Error)
		has(t, status(t, d.post("tasks/"+bad.ID+"/rerun", form(bad.Version)), 422), "secret")
		for _, opts := range []admin.Options{{Authorize: func(_ *http.Request, a admin.Action) (admin.Actor, error) {
			if a == admin.ViewArgs {
				return admin.Actor{}, errors.New("no")
			}
			return admin.Actor{Name: "bob"}, nil
		}}, {Authorize: everything, Redact: func(string, []byte) []byte { return nil }}} {
			pages, err := admin.New(d.p, opts)
			must(t, err)
			d.h = http.StripPrefix("/ops/outbox", pages)
			text := status(t, d.post("tasks/"+bad.ID+"/rerun", form(bad.Version)), 422)
			has(t, text, "do not fit")
			hasNot(t, text, "secret")
		}
	})
}
