package admin_test

import (
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/admin"
	"github.com/gorm-outbox/outbox/internal/dbtest"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

// TestReasonsAreCountedInCharacters, as the browser's field counts them.
func TestReasonsAreCountedInCharacters(t *testing.T) {
	dbtest.EachInTurn(t, func(t *testing.T, db *gorm.DB) {
		d := open(t, db, admin.Options{})
		bad := d.failed()
		text := status(t, d.post("tasks/"+bad.ID+"/rerun", form(bad.Version, "reason", strings.Repeat("ü", 1001))), 400)
		has(t, text, "at most 1,000 characters")
		status(t, d.post("tasks/"+bad.ID+"/rerun", form(bad.Version, "reason", strings.Repeat("ü", 1000))), 303)
		if rows := d.audit(); len(rows) != 1 || rows[0].Reason != strings.Repeat("ü", 1000) {
			t.Errorf("%d rows of audit", len(rows))
		}
	})
}

// TestFormsComeBack: what cannot be done as it was typed is shown again as it was typed, with the
// reason.
func TestFormsComeBack(t *testing.T) {
	d := open(t, testdb.SQLite(t), admin.Options{})
	bad, a, b := d.failed(), d.create(outbox.StartAfter(time.Hour)), d.create(outbox.StartAfter(time.Hour))
	for action, id := range map[string]string{"rerun": bad.ID, "discard": bad.ID, "cancel": a.ID, "run_now": a.ID, "reschedule": a.ID} {
		text := status(t, d.post("tasks/"+id+"/"+action, form(1, "at", "2099-01-01T01:02", "reason", "why <so>\x00")), 400)
		has(t, text, `role="alert"`, "Nothing was changed", "<h1><bdi>mail.send", id+"/"+action)
		if n := strings.Count(text, `value="why &lt;so&gt;`); n != 1 {
			t.Errorf("%s: the reason is in %d fields", action, n)
		}
		if action == "discard" || action == "cancel" {
			has(t, text, `<details id="`+action+`" open>`)
		}
		if action == "reschedule" {
			has(t, text, `<details id="time" open>`, `name="at" required value="2099-01-01T01:02"`)
		}
	}
	has(t, status(t, d.post("tasks/"+a.ID+"/reschedule", form(1, "at", "soon", "reason", "later")), 400), "at must be a time", `value="later"`, `<details id="time" open>`)

	v := url.Values{"action": {"reschedule"}, "filter": {"state=scheduled&limit=10"}, "reason": {"quiet"}, "at": {""},
		"pick": {fmt.Sprintf("%s.%d", a.ID, a.Version)}, "asof": {"2026-01-01T00:00:00Z"}, "count": {"2"}}
	text := status(t, d.post("tasks/bulk", v), 400)
	has(t, text, "at must be a time", "Nothing was changed", `value="quiet"`, `value="`+a.ID+`.1" checked>`, "Scheduled tasks</h1>")
	hasNot(t, text, `value="`+b.ID+`.1" checked>`, "data-live")
	v.Set("action", "run_now")
	v.Del("pick")
	has(t, status(t, d.post("tasks/bulk", v), 400), "No task is picked", `value="quiet"`)
	if len(d.audit()) != 0 {
		t.Error("something was changed")
	}
}

// TestKeysAreFoundAsTheyAre, with spaces at their ends.
func TestKeysAreFoundAsTheyAre(t *testing.T) {
	dbtest.EachInTurn(t, func(t *testing.T, db *gorm.DB) {
		d := open(t, db, admin.Options{})
		task := d.create(outbox.StartAfter(time.Hour), outbox.Key(" k "))
		text := status(t, d.get("tasks?key="+url.QueryEscape(" k ")), 200)
		has(t, text, `id="t-`+task.ID, `name="key" value=" k "`)
		hasNot(t, status(t, d.get("tasks?key=k"), 200), `id="t-`)
	})
}
