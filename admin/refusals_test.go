package admin_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/admin"
	"github.com/gorm-outbox/outbox/internal/dbtest"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

// TestRefusalsAreLogged with the action and Authorize's error, and nothing of what the request has
// for a password.
func TestRefusalsAreLogged(t *testing.T) {
	var said strings.Builder
	refusal := error(nil)
	d := open(t, testdb.SQLite(t), admin.Options{})
	pages, err := admin.New(d.p, admin.Options{Logger: slogTo(&said), Authorize: func(_ *http.Request, a admin.Action) (admin.Actor, error) {
		if a == admin.Cancel {
			return admin.Actor{}, refusal
		}
		return admin.Actor{Name: "bob"}, nil
	}})
	must(t, err)
	d.h = http.StripPrefix("/ops/outbox", pages)
	ask := func() {
		d.send("POST", "tasks/x/cancel", "application/x-www-form-urlencoded", "version=1", "Authorization", "Basic c2VjcmV0")
	}
	refusal = errors.New("the directory is down")
	ask()
	has(t, said.String(), "level=WARN", "action=cancel", "the directory is down")
	hasNot(t, said.String(), "c2VjcmV0")
	said.Reset()
	refusal = admin.ErrUnauthenticated // which is said at Debug: a browser that is not signed in yet asks like that
	ask()
	hasNot(t, said.String(), "action=cancel")
}

// TestFormsAreForms: a body of another kind is no empty form.
func TestFormsAreForms(t *testing.T) {
	d := open(t, testdb.SQLite(t), admin.Options{})
	task := d.create(outbox.StartAfter(time.Hour))
	for _, kind := range []string{"multipart/form-data; boundary=x", "text/plain", "application/json", ""} {
		has(t, status(t, d.send("POST", "tasks/"+task.ID+"/cancel", kind, "version=1"), 415), "application/x-www-form-urlencoded")
		status(t, d.send("POST", "tasks/bulk", kind, "action=cancel"), 415)
	}
	status(t, d.send("POST", "tasks/"+task.ID+"/cancel", "application/x-www-form-urlencoded; charset=utf-8", "version=1"), 303)
}

// TestAnswersAreUTF8, whatever the names of parameters are.
func TestAnswersAreUTF8(t *testing.T) {
	d := open(t, testdb.SQLite(t), admin.Options{})
	for _, query := range []string{"tasks?%ff%00=1", "api/v1/tasks?%ff=1", "tasks?cursor=%ff", "tasks/%ff"} {
		w := d.get(query)
		if text := w.Body.String(); w.Code >= 500 || !utf8.ValidString(text) || strings.ContainsRune(text, 0) {
			t.Errorf("%s: %d %q", query, w.Code, text)
		}
	}
}

// TestConflictsSayWhatItIs in the words of the API's GET, and of a task that runs as well.
func TestConflictsSayWhatItIs(t *testing.T) {
	dbtest.EachInTurn(t, func(t *testing.T, db *gorm.DB) {
		d := open(t, db, admin.Options{})
		bad, again, gone := d.failed(), d.failed(), d.create(outbox.StartAfter(time.Hour))
		_, err := outbox.Rerun(db, again.ID, outbox.StartAfter(time.Hour))
		must(t, err)
		must(t, outbox.Cancel(db, gone.ID))
		ran := d.create()
		_, err = d.p.RunDue(t.Context())
		must(t, err)
		later, runs := d.create(outbox.StartAfter(time.Hour)), d.create(outbox.StartAfter(time.Hour))
		must(t, db.Model(runs).Updates(map[string]any{"state": "running", "process_id": "p-1"}).Error)
		type current struct {
			State   string
			Version int64
		}
		type answer struct {
			Detail  string
			Current *current
		}
		for name, tt := range map[string]struct{ id, change, says string }{
			"failed":    {bad.ID, `rerun {"version":99}`, "has changed"},
			"handled":   {again.ID, `rerun {"version":99}`, "has changed"},
			"cancelled": {gone.ID, `cancel {"version":1}`, "cancelled"},
			"done":      {ran.ID, `cancel {"version":1}`, "done"},
			"scheduled": {later.ID, `rerun {"version":1}`, "has not ended"},
			"running":   {runs.ID, `cancel {"version":1}`, "running"},
		} {
			action, body, _ := strings.Cut(tt.change, " ")
			got := decode[answer](t, status(t, d.postJSON("api/v1/tasks/"+tt.id+"/"+action, body), 409))
			is := decode[current](t, status(t, d.get("api/v1/tasks/"+tt.id), 200))
			if got.Current == nil || *got.Current != is || is.State != name || !strings.Contains(got.Detail, tt.says) {
				t.Errorf("%s: the conflict says %+v %s, the task is %+v", name, got.Current, got.Detail, is)
			}
		}
		got := decode[answer](t, status(t, d.postJSON("api/v1/tasks/"+later.ID+"/discard", `{"version":1}`), 409))
		if got.Current == nil || got.Current.State != "scheduled" {
			t.Errorf("discard of a task that waits: %+v", got)
		}
		text := status(t, d.postJSON("api/v1/tasks/bulk", `{"action":"cancel","tasks":[{"id":"`+runs.ID+`","version":1}]}`), 200)
		has(t, text, `"reason":"running"`)
		if !json.Valid([]byte(text)) {
			t.Error("no JSON")
		}
	})
}
