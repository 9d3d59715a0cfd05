package admin_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/admin"
	"github.com/gorm-outbox/outbox/internal/dbtest"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

func form(version int64, pairs ...string) url.Values {
	v := url.Values{"version": {fmt.Sprint(version)}}
	for i := 0; i+1 < len(pairs); i += 2 {
		v.Set(pairs[i], pairs[i+1])
	}
	return v
}

func TestChanges(t *testing.T) {
	dbtest.EachInTurn(t, func(t *testing.T, db *gorm.DB) {
		d := open(t, db, admin.Options{})
		lastAudit := func(t *testing.T, action, task, reason string, before, after string) outbox.AuditModel {
			t.Helper()
			rows := d.audit()
			if len(rows) == 0 {
				t.Fatal("no audit")
			}
			m := rows[len(rows)-1]
			if m.Actor != "alice" || m.Action != action || m.TaskID != task || m.Reason != reason || m.Func != "mail.send" ||
				time.Since(m.At).Abs() > time.Minute {
				t.Errorf("audit is %+v", m)
			}
			has(t, m.Before.String(), before)
			has(t, m.After.String(), after)
			return m
		}
		t.Run("rerun", func(t *testing.T) {
			bad := d.failed(outbox.Key("k"), outbox.MaxAttempts(1))
			w := d.post("tasks/"+bad.ID+"/rerun", form(bad.Version, "reason", " smtp <fixed> "))
			status(t, w, 303)
			again := d.past(bad.ID).RerunID
			if again == nil {
				t.Fatal("no new task")
			}
			if to := w.Header().Get("Location"); to != "./../../tasks/"+*again+"?did=rerun&n=1" {
				t.Errorf("sent to %s", to)
			}
			if task := d.task(*again); task.Args.String() != bad.Args.String() || *task.Key != "k" {
				t.Errorf("the new task is %+v", task)
			}
			lastAudit(t, "rerun", bad.ID, "smtp <fixed>", `"error"`, *again)
			has(t, status(t, d.get("tasks/"+*again+"?did=rerun&n=1"), 200), "1 task re-run", bad.ID, "smtp &lt;fixed&gt;")
			has(t, status(t, d.get("audit?action=rerun&actor=alice&task="+bad.ID), 200), "smtp &lt;fixed&gt;")
			t.Run("again", func(t *testing.T) {
				n := len(d.audit())
				has(t, status(t, d.post("tasks/"+bad.ID+"/rerun", form(bad.Version)), 409), "re-run already", *again)
				if len(d.audit()) != n {
					t.Error("what was refused is in the audit")
				}
			})
			must(t, outbox.Cancel(db, *again))
		})
		t.Run("rerun with other arguments", func(t *testing.T) {
			bad := d.failed()
			has(t, status(t, d.post("tasks/"+bad.ID+"/rerun", form(bad.Version, "args", `{"no":1}`)), 422), "do not fit")
			status(t, d.post("tasks/"+bad.ID+"/rerun", form(bad.Version, "args", `{`)), 422)
			status(t, d.post("tasks/"+bad.ID+"/rerun", form(bad.Version, "args", "")), 422)
			if d.past(bad.ID).RerunID != nil {
				t.Fatal("something was created")
			}
			status(t, d.post("tasks/"+bad.ID+"/rerun", form(bad.Version, "args", `{"to":"bob","n":9007199254740993}`)), 303)
			if task := d.task(*d.past(bad.ID).RerunID); task.Args.String() != `{"to":"bob","n":9007199254740993}` {
				t.Errorf("arguments are %s", task.Args)
			}
			m := lastAudit(t, "rerun", bad.ID, "", "failed", "edited")
			hasNot(t, m.After.String(), "bob")
		})
		t.Run("run now, reschedule, cancel", func(t *testing.T) {
			task := d.create(outbox.StartAfter(time.Hour))
			status(t, d.post("tasks/"+task.ID+"/reschedule", form(1, "at", "2099-01-02T03:04")), 303)
			if got := d.task(task.ID); !got.RunAt.Equal(time.Date(2099, 1, 2, 3, 4, 0, 0, time.UTC)) || got.Version != 2 {
				t.Errorf("rescheduled to %s, version %d", got.RunAt, got.Version)
			}
			lastAudit(t, "reschedule", task.ID, "", "run_at", "2099-01-02T03:04:00Z")
			status(t, d.post("tasks/"+task.ID+"/reschedule", form(2, "at", "soon")), 400)
			status(t, d.post("tasks/"+task.ID+"/run_now", form(2)), 303)
			if got := d.task(task.ID); time.Until(got.RunAt) > 0 {
				t.Errorf("due at %s", got.RunAt)
			}
			lastAudit(t, "run_now", task.ID, "", "2099", "pending")
			status(t, d.post("tasks/"+task.ID+"/cancel", form(3, "reason", "no use")), 303)
			if got := d.past(task.ID); got.Status != outbox.StatusCancelled {
				t.Errorf("ended as %s", got.Status)
			}
			lastAudit(t, "cancel", task.ID, "no use", "pending", "cancelled")
			has(t, status(t, d.post("tasks/"+task.ID+"/cancel", form(3)), 409), "cancelled")
			status(t, d.post("tasks/"+task.ID+"/discard", form(3)), 409)
		})
		t.Run("discard", func(t *testing.T) {
			bad := d.failed()
			status(t, d.post("tasks/"+bad.ID+"/discard", form(bad.Version, "reason", "known")), 303)
			if _, _, err := outbox.Lookup(db, bad.ID); !errors.Is(err, outbox.ErrNotFound) {
				t.Errorf("it is still there: %v", err)
			}
			lastAudit(t, "discard", bad.ID, "known", "dial tcp", "discarded")
		})
		t.Run("a stale version", func(t *testing.T) {
			task := d.create(outbox.StartAfter(time.Hour))
			bad := d.failed()
			n := len(d.audit())
			for path, version := range map[string]int64{"tasks/" + task.ID + "/cancel": 0, "tasks/" + task.ID + "/run_now": 9,
				"tasks/" + bad.ID + "/rerun": 99, "tasks/" + bad.ID + "/discard": 99} {
				has(t, status(t, d.post(path, form(version)), 409), "has changed", "Nothing was changed")
			}
			got := d.postJSON("api/v1/tasks/"+task.ID+"/cancel", `{"version":7}`)
			if p := decode[struct{ Current struct{ State, Version any } }](t, status(t, got, 409)); p.Current.State != "scheduled" || p.Current.Version != 1.0 {
				t.Errorf("it does not say what became of it: %+v", p)
			}
			if len(d.audit()) != n || d.task(task.ID).Version != 1 {
				t.Error("something was changed")
			}
		})
		t.Run("running", func(t *testing.T) {
			task := d.create(outbox.StartAfter(time.Hour))
			must(t, db.Model(task).Updates(map[string]any{"state": "running", "process_id": "p"}).Error)
			for _, action := range []string{"cancel", "run_now"} {
				has(t, status(t, d.post("tasks/"+task.ID+"/"+action, form(1)), 409), "running")
			}
			status(t, d.post("tasks/"+task.ID+"/rerun", form(1)), 409)
		})
		t.Run("bad forms", func(t *testing.T) {
			task := d.create(outbox.StartAfter(time.Hour))
			status(t, d.post("tasks/"+task.ID+"/cancel", url.Values{}), 400)
			status(t, d.post("tasks/"+task.ID+"/cancel", form(1, "more", "x")), 400)
			status(t, d.post("tasks/"+task.ID+"/cancel", form(1, "args", "{}")), 400)
			status(t, d.post("tasks/"+task.ID+"/cancel", form(1, "reason", strings.Repeat("x", 1001))), 400)
			status(t, d.post("tasks/"+task.ID+"/cancel", form(1, "reason", "a\x00b")), 400)
			status(t, d.post("tasks/"+task.ID+"/explode", form(1)), 404)
			status(t, d.post("tasks/nope/cancel", form(1)), 404)
			status(t, d.post("tasks/"+task.ID+"/cancel", form(1, "reason", strings.Repeat("x", 2<<20))), 413)
			status(t, d.postJSON("api/v1/tasks/"+task.ID+"/cancel", `{"version":1,"reason":"`+strings.Repeat("x", 2<<20)+`"}`), 413)
			status(t, d.send("POST", "api/v1/tasks/"+task.ID+"/cancel", "text/plain", `{"version":1}`), 415)
			for _, body := range []string{``, `[]`, `{}`, `{"version":1,"x":2}`, `{"version":1}{}`, `{"version":1,"at":"2099-01-01"}`, `{"version":1.5}`} {
				status(t, d.postJSON("api/v1/tasks/"+task.ID+"/cancel", body), 400)
			}
			d.task(task.ID)
		})
		t.Run("a change and its audit are one", func(t *testing.T) {
			task := d.create(outbox.StartAfter(time.Hour))
			must(t, db.Exec("ALTER TABLE outbox_audit RENAME TO away").Error)
			w := d.post("tasks/"+task.ID+"/cancel", form(1))
			if w.Code < 500 {
				t.Errorf("status %d", w.Code)
			}
			hasNot(t, w.Body.String(), "outbox_audit", "SQL", "sql")
			d.task(task.ID)
			must(t, db.Exec("ALTER TABLE away RENAME TO outbox_audit").Error)
			status(t, d.post("tasks/"+task.ID+"/cancel", form(1)), 303)
		})
	})
}

func TestDoubleSubmit(t *testing.T) {
	dbtest.EachInTurn(t, func(t *testing.T, db *gorm.DB) {
		d := open(t, db, admin.Options{QueryTimeout: time.Minute})
		bad := d.failed()
		codes := make([]int, 8)
		var wg sync.WaitGroup
		for i := range codes {
			wg.Go(func() { codes[i] = d.post("tasks/"+bad.ID+"/rerun", form(bad.Version)).Code })
		}
		wg.Wait()
		won := 0
		for _, code := range codes {
			if code == 303 {
				won++
			} else if code != 409 && code != 503 {
				t.Errorf("status %d", code)
			}
		}
		if n := len(d.audit()); won != 1 || n != 1 {
			t.Errorf("%d won, %d are in the audit", won, n)
		}
	})
}

// refusing is a hook that lets no task be created.
type refusing struct{ outbox.NopHooks }

func (refusing) OnCreate(context.Context, *outbox.TaskModel) error {
	return errors.New("inner secret at /srv/app.go:7")
}

// TestErrorsStayInside: what is nobody's fault but the application's is a 500 whose reason is in
// the log only.
func TestErrorsStayInside(t *testing.T) {
	d := open(t, testdb.SQLite(t), admin.Options{})
	bad := d.failed()
	db, err := gorm.Open(d.db.Dialector, &gorm.Config{ConnPool: d.db.ConnPool, Logger: logger.Discard})
	must(t, err)
	p := outbox.New(outbox.Options{Logger: slog.New(slog.DiscardHandler), ProducerOnly: true, Hooks: []outbox.Hooks{refusing{}}})
	must(t, db.Use(p))
	var said strings.Builder
	pages, err := admin.New(p, admin.Options{Authorize: everything, Logger: slogTo(&said)})
	must(t, err)
	d.h = http.StripPrefix("/ops/outbox", pages)
	for _, w := range []*httptest.ResponseRecorder{d.post("tasks/"+bad.ID+"/rerun", form(bad.Version)), d.postJSON("api/v1/tasks/"+bad.ID+"/rerun", fmt.Sprintf(`{"version":%d}`, bad.Version)),
		d.post("tasks/bulk", url.Values{"action": {"rerun"}, "pick": {fmt.Sprintf("%s.%d", bad.ID, bad.Version)}})} {
		text := status(t, w, 500)
		has(t, text, "log says why")
		hasNot(t, text, "secret", "app.go", "hook")
	}
	if n := strings.Count(said.String(), "inner secret"); n != 3 {
		t.Errorf("%d errors are in the log", n)
	}
}
