package admin_test

import (
	"context"
	"crypto/pbkdf2"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/admin"
	"github.com/gorm-outbox/outbox/testutil"
)

func form(version int64, pairs ...string) url.Values {
	v := url.Values{"version": {fmt.Sprint(version)}}
	for i := 0; i+1 < len(pairs); i += 2 {
		v.Set(pairs[i], pairs[i+1])
	}
	return v
}

func TestChanges(t *testing.T) {
	eachDB(t, func(t *testing.T, db *gorm.DB) {
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
			if p := decode[struct{ Current struct{ State, Version any } }](t, status(t, got, 409)); p.Current.State != "pending" || p.Current.Version != 1.0 {
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
			if w := d.post("tasks/"+task.ID+"/cancel", form(1)); w.Code < 500 {
				t.Errorf("status %d", w.Code)
			}
			d.task(task.ID)
			must(t, db.Exec("ALTER TABLE away RENAME TO outbox_audit").Error)
			status(t, d.post("tasks/"+task.ID+"/cancel", form(1)), 303)
		})
	})
}

func TestDoubleSubmit(t *testing.T) {
	eachDB(t, func(t *testing.T, db *gorm.DB) {
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

var (
	asOf  = regexp.MustCompile(`name="asof" value="([^"]+)"`)
	total = regexp.MustCompile(`name="count" value="([^"]+)"`)
)

func TestBulk(t *testing.T) {
	eachDB(t, func(t *testing.T, db *gorm.DB) {
		d := open(t, db, admin.Options{})
		t.Run("picked", func(t *testing.T) {
			a, b, c := d.failed(), d.failed(), d.failed()
			_, err := outbox.Rerun(db, b.ID)
			must(t, err)
			v := url.Values{"action": {"rerun"}, "filter": {"state=failed&func=mail.send"}, "reason": {"all of them"}, "count": {"3"}, "asof": {""},
				"pick": {a.ID + ".1", fmt.Sprintf("%s.%d", b.ID, b.Version), fmt.Sprintf("%s.%d", c.ID, c.Version), "nope.1"}}
			v["pick"][0] = fmt.Sprintf("%s.%d", a.ID, a.Version)
			w := d.post("tasks/bulk", v)
			status(t, w, 303)
			to := w.Header().Get("Location")
			has(t, to, "./../tasks?", "did=rerun", "n=2", "func=mail.send", "state=failed")
			has(t, status(t, d.get(strings.TrimPrefix(to, "./../")), 200), "2 tasks re-run", "left as they are", "1 changed", "1 gone")
			if rows := d.audit(); len(rows) != 2 || rows[1].Reason != "all of them" {
				t.Errorf("audit: %+v", rows)
			}
		})
		t.Run("what destroys asks first", func(t *testing.T) {
			bad := d.failed()
			v := url.Values{"action": {"discard"}, "filter": {"state=failed"}, "pick": {fmt.Sprintf("%s.%d", bad.ID, bad.Version)}, "reason": {`"><b>`}}
			text := status(t, d.post("tasks/bulk", v), 200)
			has(t, text, "Discard 1 task?", `name="confirmed" value="yes"`, bad.ID)
			hasNot(t, text, `"><b>`)
			d.past(bad.ID)
			v.Set("confirmed", "yes")
			status(t, d.post("tasks/bulk", v), 303)
			if _, _, err := outbox.Lookup(db, bad.ID); !errors.Is(err, outbox.ErrNotFound) {
				t.Error("it is still there")
			}
		})
		t.Run("all that were shown", func(t *testing.T) {
			must(t, db.Where("1 = 1").Delete(&outbox.HistoryModel{}).Error)
			must(t, db.Where("1 = 1").Delete(&outbox.TaskModel{}).Error)
			for range 230 { // more than two batches
				d.create(outbox.Queue("bulk"), outbox.StartAfter(time.Hour))
			}
			other := d.create(outbox.StartAfter(time.Hour))
			text := status(t, d.get("tasks?state=scheduled&queue=bulk"), 200)
			has(t, text, "All 230 that match")
			at, n := asOf.FindStringSubmatch(text), total.FindStringSubmatch(text)
			v := url.Values{"action": {"cancel"}, "filter": {"state=scheduled&queue=bulk"}, "all": {"1"}, "confirmed": {"yes"},
				"asof": {strings.ReplaceAll(at[1], "&#43;", "+")}, "count": {n[1]}}
			late := d.create(outbox.Queue("bulk"), outbox.StartAfter(time.Hour))
			v.Set("count", "229")
			has(t, status(t, d.post("tasks/bulk", v), 409), "229 tasks were shown; 230 match now")
			v.Set("count", n[1])
			w := d.post("tasks/bulk", v)
			status(t, w, 303)
			has(t, w.Header().Get("Location"), "n=230")
			d.task(other.ID)
			d.task(late.ID)
			if rows := d.audit(); len(rows) < 230 {
				t.Errorf("%d in the audit", len(rows))
			}
		})
		t.Run("bad", func(t *testing.T) {
			for _, v := range []url.Values{{}, {"action": {"reschedule"}, "pick": {"x.1"}}, {"action": {"burn"}}, {"action": {"rerun"}}, {"action": {"rerun"}, "pick": {"x"}},
				{"action": {"rerun"}, "pick": {"x.1"}, "filter": {"zap=1"}}, {"action": {"rerun"}, "all": {"1"}},
				{"action": {"rerun"}, "all": {"1"}, "asof": {"2026-01-01T00:00:00Z"}, "count": {"5"}, "filter": {"state=all"}}} {
				status(t, d.post("tasks/bulk", v), 400)
			}
		})
		t.Run("JSON", func(t *testing.T) {
			a, b := d.failed(), d.failed()
			text := status(t, d.postJSON("api/v1/tasks/bulk", fmt.Sprintf(`{"action":"discard","reason":"r","tasks":[{"id":%q,"version":%d},{"id":%q,"version":77}]}`,
				a.ID, a.Version, b.ID)), 200)
			has(t, text, `{"changed":1,"skipped":[{"id":"`+b.ID+`","reason":"changed"}]}`)
			text = status(t, d.postJSON("api/v1/tasks/bulk", fmt.Sprintf(`{"action":"rerun","filter":{"state":"failed"},"as_of":%q,"count":1}`,
				time.Now().Add(time.Minute).UTC().Format(time.RFC3339))), 200)
			has(t, text, `"changed":1`)
			for _, body := range []string{`{}`, `{"action":"rerun"}`, `{"action":"rerun","filter":{"state":"failed"}}`,
				`{"action":"reschedule","tasks":[{"id":"x","version":1}]}`,
				`{"action":"cancel","at":"2099-01-01","tasks":[{"id":"x","version":1}]}`, `{"action":"rerun","filter":{"x":"failed"},"as_of":"2026-01-01T00:00:00Z","count":1}`} {
				status(t, d.postJSON("api/v1/tasks/bulk", body), 400)
			}
		})
	})
}

func TestPermissions(t *testing.T) {
	allowed := map[admin.Action]bool{}
	var refusal error = errors.New("secret words")
	authorize := func(_ *http.Request, a admin.Action) (admin.Actor, error) {
		if !allowed[a] {
			return admin.Actor{}, refusal
		}
		return admin.Actor{Name: "bob"}, nil
	}
	eachDB(t, func(t *testing.T, db *gorm.DB) {
		clear(allowed)
		d := open(t, db, admin.Options{Authorize: authorize})
		bad, waits := d.failed(), d.create(outbox.StartAfter(time.Hour))
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
				hasNot(t, text, "ann@example.com", `method="post" action="./tasks/`+bad.ID, "<button name=\"action\"", "/rerun\"", "/cancel\"")
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
	eachDB(t, func(t *testing.T, db *gorm.DB) {
		redact := func(path string, raw []byte) []byte {
			if path != "mail.send" {
				t.Errorf("redact %s", path)
			}
			return regexp.MustCompile(`[a-z]+@`).ReplaceAll(raw, []byte("•••@"))
		}
		d := open(t, db, admin.Options{Redact: redact})
		bad := d.failed()
		for range 3 {
			d.create(outbox.StartAfter(time.Hour))
		}
		for _, page := range append(allPages, "tasks/"+bad.ID, "api/v1/tasks/"+bad.ID) {
			hasNot(t, status(t, d.get(page), 200), "ann@")
		}
		has(t, status(t, d.get("tasks/"+bad.ID), 200), "•••@example.com", "give all of them")
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

func TestBasicAuth(t *testing.T) {
	hash, err := admin.HashPassword("pass:wörd")
	must(t, err)
	d := open(t, testutil.SQLite(t), admin.Options{Authorize: admin.BasicAuth(map[string]string{"alice": hash})})
	send := func(user, password string) int {
		r, _ := http.NewRequest("GET", "/", nil)
		r.SetBasicAuth(user, password)
		return d.send("GET", "", "", "", "Authorization", r.Header.Get("Authorization")).Code
	}
	for range 2 {
		if a, b, c, e := send("alice", "pass:wörd"), send("alice", "pass"), send("bob", "pass:wörd"), send("", ""); a != 200 || b != 401 || c != 401 || e != 401 {
			t.Errorf("got %d, %d, %d, %d", a, b, c, e)
		}
	}
	w := d.get("")
	status(t, w, 401)
	if w.Header().Get("WWW-Authenticate") == "" {
		t.Error("the browser is not told to ask")
	}
	for name, users := range map[string]map[string]string{"no users": nil, "plain text": {"a": "secret"}, "a colon": {"a:b": hash}, "no name": {"": hash}, "weak": {"a": strings.Replace(hash, "600000", "10", 1)}} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			admin.BasicAuth(users)
		}()
	}
}

// TestGuessingHoldsUpNobody has twenty wrong passwords wait to be tried while a user who is in already asks for a page.
func TestGuessingHoldsUpNobody(t *testing.T) {
	salt := make([]byte, 16)
	sum, err := pbkdf2.Key(sha256.New, "right", salt, 200_000, sha256.Size)
	must(t, err)
	enc := base64.RawStdEncoding.EncodeToString
	authorize := admin.BasicAuth(map[string]string{"alice": "pbkdf2-sha256$200000$" + enc(salt) + "$" + enc(sum)})
	ctx, giveUp := context.WithCancel(t.Context())
	try := func(password string) error {
		r, _ := http.NewRequestWithContext(ctx, "GET", "/", nil)
		r.SetBasicAuth("alice", password)
		_, err := authorize(r, admin.View)
		return err
	}
	must(t, try("right"))
	var guesses sync.WaitGroup
	var begun, open atomic.Int64
	for range 20 {
		open.Add(1)
		guesses.Go(func() {
			begun.Add(1)
			if try("wrong") == nil {
				t.Error("a wrong password was right")
			}
			open.Add(-1)
		})
	}
	for begun.Load() < 20 {
		runtime.Gosched()
	}
	must(t, try("right"))
	if n := open.Load(); n < 10 {
		t.Errorf("only %d of 20 guesses are still open: the user has waited for the others", n)
	}
	giveUp() // whoever has gone is not tried
	guesses.Wait()
}

// TestBulkStopsHalfWay breaks off a change of many tasks when its second hundred has been read: what was done is reported,
// and doing it again does the rest.
func TestBulkStopsHalfWay(t *testing.T) {
	eachDB(t, func(t *testing.T, db *gorm.DB) {
		ctx, stop := context.WithCancel(t.Context())
		reads := 0
		db.Logger = stopper{db.Logger, func(text string) {
			if strings.HasSuffix(text, "LIMIT 101") {
				if reads++; reads == 2 {
					stop()
				}
			}
		}}
		d := open(t, db, admin.Options{})
		for range 150 {
			d.create(outbox.StartAfter(time.Hour))
		}
		ask := func(ctx context.Context, count int) map[string]any {
			body := fmt.Sprintf(`{"action":"cancel","filter":{"state":"scheduled"},"as_of":%q,"count":%d}`, time.Now().Add(time.Minute).Format(time.RFC3339), count)
			r := httptest.NewRequestWithContext(ctx, "POST", "/ops/outbox/api/v1/tasks/bulk", strings.NewReader(body))
			r.Header.Set("Content-Type", "application/json")
			w := httptest.NewRecorder()
			d.h.ServeHTTP(w, r)
			return decode[map[string]any](t, status(t, w, 200))
		}
		if got := ask(ctx, 150); got["changed"] != 100.0 || got["more"] != true {
			t.Errorf("the first says %v", got)
		}
		if n := len(d.audit()); n != 100 {
			t.Errorf("%d rows of audit", n)
		}
		if got := ask(t.Context(), 50); got["changed"] != 50.0 || got["more"] != nil {
			t.Errorf("the second says %v", got)
		}
	})
}

// stopper tells of each statement of GORM's.
type stopper struct {
	logger.Interface
	heard func(string)
}

func (s stopper) Trace(_ context.Context, _ time.Time, fc func() (string, int64), _ error) {
	text, _ := fc()
	s.heard(text)
}
