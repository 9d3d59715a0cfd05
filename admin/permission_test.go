package admin_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/admin"
	"github.com/gorm-outbox/outbox/internal/dbtest"
)

func TestPermissions(t *testing.T) {
	allowed := map[admin.Action]bool{}
	var refusal error = errors.New("secret words")
	authorize := func(_ *http.Request, a admin.Action) (admin.Actor, error) {
		if !allowed[a] {
			return admin.Actor{}, refusal
		}
		return admin.Actor{Name: "bob"}, nil
	}
	dbtest.EachInTurn(t, func(t *testing.T, db *gorm.DB) {
		clear(allowed)
		d := open(t, db, admin.Options{Authorize: authorize})
		bad, waits := d.failed(), d.create(outbox.StartAfter(time.Hour))
		must(t, db.Model(&outbox.HistoryModel{}).Where("id = ?", bad.ID).Updates(map[string]any{"result": outbox.JSON(`"a-result"`), "meta": outbox.Meta{"trace": "a-meta"}}).Error)
		t.Run("nobody", func(t *testing.T) {
			for _, page := range append(allPages, "tasks/"+bad.ID, "api/v1/tasks/"+bad.ID, "nope") {
				text := status(t, d.get(page), 403)
				hasNot(t, text, "secret words", "mail.send", bad.ID)
				refusal = admin.ErrUnauthenticated
				status(t, d.get(page), 401)
				refusal = errors.New("secret words")
			}
			status(t, d.post("tasks/"+waits.ID+"/cancel", form(1)), 403)
			status(t, d.post("tasks/bulk", url.Values{"action": {"cancel"}, "pick": {waits.ID + ".1"}, "confirmed": {"yes"}}), 403)
		})
		paths := map[admin.Action][]string{admin.Rerun: {bad.ID + "/rerun"}, admin.Discard: {bad.ID + "/discard"}, admin.Cancel: {waits.ID + "/cancel"},
			admin.RunNow: {waits.ID + "/run_now"}, admin.Reschedule: {waits.ID + "/reschedule"}}
		t.Run("only view", func(t *testing.T) {
			allowed[admin.View] = true
			for _, page := range append(allPages, "tasks/"+bad.ID, "tasks/"+waits.ID, "api/v1/tasks/"+bad.ID) {
				text := status(t, d.get(page), 200)
				hasNot(t, text, "ann@example.com", "a-result", "a-meta", `method="post" action="./tasks/`+bad.ID, "<button name=\"action\"", "/rerun\"", "/cancel\"")
			}
			status(t, d.get("tasks?args=ann"), 403)
			status(t, d.get("api/v1/tasks?args=ann"), 403)
			status(t, d.get("export?format=csv&args=ann"), 403)
			status(t, d.postJSON("api/v1/tasks/bulk", `{"action":"rerun","filter":{"state":"failed","args":"a"},"as_of":"2099-01-01T00:00:00Z","count":1}`), 403)
			for _, list := range paths {
				status(t, d.post("tasks/"+list[0], form(bad.Version)), 403)
				status(t, d.postJSON("api/v1/tasks/"+list[0], `{"version":1}`), 403)
			}
			for _, a := range []string{"rerun", "run_now", "reschedule", "cancel", "discard"} {
				status(t, d.post("tasks/bulk", url.Values{"action": {a}, "pick": {waits.ID + ".1"}, "confirmed": {"yes"}}), 403)
				status(t, d.postJSON("api/v1/tasks/bulk", `{"action":"`+a+`","tasks":[{"id":"x","version":1}]}`), 403)
			}
		})
		t.Run("also the arguments", func(t *testing.T) {
			allowed[admin.ViewArgs] = true
			has(t, status(t, d.get("tasks/"+bad.ID), 200), "ann@example.com", "a-result", "a-meta")
			has(t, status(t, d.get("api/v1/tasks/"+bad.ID), 200), "ann@example.com", "a-result")
			has(t, status(t, d.get("export?format=csv"), 200), "ann@example.com")
		})
		for action, list := range paths {
			t.Run("also "+string(action), func(t *testing.T) {
				clear(allowed)
				allowed[admin.View], allowed[action] = true, true
				id := strings.Split(list[0], "/")[0]
				text := status(t, d.get("tasks/"+id), 200)
				for other, theirs := range paths {
					if shown := strings.Contains(text, `action="./../tasks/`+theirs[0]); shown != (other == action) {
						t.Errorf("%s is shown: %v", other, shown)
					}
				}
				hasNot(t, text, "textarea")
				status(t, d.post("tasks/"+list[0], form(99, "at", "2099-01-01")), 409) // asked, allowed, stale
			})
		}
		t.Run("rerun without editing", func(t *testing.T) {
			clear(allowed)
			allowed[admin.View], allowed[admin.Rerun] = true, true
			status(t, d.post("tasks/"+bad.ID+"/rerun", form(bad.Version, "args", `{"to":"x"}`)), 403)
			status(t, d.postJSON("api/v1/tasks/"+bad.ID+"/rerun", fmt.Sprintf(`{"version":%d,"args":{"to":"x"}}`, bad.Version)), 403)
			if d.past(bad.ID).RerunID != nil || len(d.audit()) != 0 {
				t.Error("it was re-run")
			}
		})
	})
}

func TestRedact(t *testing.T) {
	dbtest.EachInTurn(t, func(t *testing.T, db *gorm.DB) {
		redact := func(path string, raw []byte) []byte {
			if path != "mail.send" {
				t.Errorf("redact %s", path)
			}
			return regexp.MustCompile(`[a-z]+@`).ReplaceAll(raw, []byte("•••@"))
		}
		d := open(t, db, admin.Options{Redact: redact})
		bad := d.failed()
		must(t, db.Model(&outbox.HistoryModel{}).Where("id = ?", bad.ID).Update("result", outbox.JSON(`"ann@"`)).Error)
		for range 3 {
			d.create(outbox.StartAfter(time.Hour))
		}
		for _, page := range append(allPages, "tasks/"+bad.ID, "api/v1/tasks/"+bad.ID) {
			hasNot(t, status(t, d.get(page), 200), "ann@")
		}
		has(t, status(t, d.get("tasks/"+bad.ID), 200), "•••@example.com", "give all of them", "Arguments, redacted", `<pre id="result-text" tabindex="0">&#34;•••@`)
		for query, found := range map[string]bool{"ann@": false, "ann": false, "example.com": true, "•••": true} {
			for _, state := range []string{"failed", "all"} {
				if text := status(t, d.get("tasks?state="+state+"&args="+url.QueryEscape(query)), 200); strings.Contains(text, bad.ID) != found {
					t.Errorf("%q in %s is found: %v", query, state, !found)
				}
			}
		}
		if n := strings.Count(status(t, d.get("tasks?state=scheduled&limit=2&args=example"), 200), `id="t-`); n != 2 {
			t.Errorf("%d rows, want a full page of 2", n)
		}
		status(t, d.post("tasks/bulk", url.Values{"action": {"rerun"}, "all": {"1"}, "asof": {time.Now().UTC().Format(time.RFC3339)}, "count": {"9"},
			"filter": {"state=failed&args=ann"}}), 400)
	})
}

// TestLogsHoldNoArguments breaks what writes and reads: the log says that it failed, and nothing of
// what tasks hold.
func TestLogsHoldNoArguments(t *testing.T) {
	dbtest.EachInTurn(t, func(t *testing.T, db *gorm.DB) {
		d := open(t, db, admin.Options{})
		bad, waits := d.failed(), d.create(outbox.StartAfter(time.Hour))
		var said strings.Builder
		pages, err := admin.New(d.p, admin.Options{Authorize: everything, QueryTimeout: time.Minute, Logger: slogTo(&said)})
		must(t, err)
		d.h = http.StripPrefix("/ops/outbox", pages)
		must(t, db.Exec("ALTER TABLE outbox_audit RENAME TO away").Error)
		d.post("tasks/"+bad.ID+"/rerun", form(bad.Version))
		d.post("tasks/"+bad.ID+"/rerun", form(bad.Version, "args", `{"to":"bob@example.com"}`, "reason", "a reason"))
		d.post("tasks/"+waits.ID+"/cancel", form(1))
		d.get("tasks/" + bad.ID)
		must(t, db.Exec("ALTER TABLE outbox_history RENAME TO gone").Error)
		d.get("tasks?args=ann@example.com&error=a-search")
		d.get("export?format=csv&args=ann@example.com")
		if n := strings.Count(said.String(), "request failed"); n != 6 {
			t.Errorf("%d errors are in the log", n)
		}
		hasNot(t, said.String(), "ann@", "bob@", "a reason", "a-search")
	})
}
