package browsertest_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/admin"
)

// long are texts as nobody writes them and everybody meets them.
var long = map[string]string{
	"nnn":    strings.Repeat("n", 255),
	"words":  strings.Repeat("a word after another ", 12),
	"hebrew": "משימות." + strings.Repeat("שליחת", 30),
	"emoji":  strings.Repeat("👩‍👩‍👧‍👦", 9) + "</script><b>",
}

// everyState puts a task of every state into the shop, and returns where each is.
func everyState(t *testing.T, s *shop) map[string]string {
	t.Helper()
	create := func(opts ...outbox.CreateOption) *outbox.TaskModel {
		t.Helper()
		task, err := outbox.Create(s.db, "mail.send", outbox.Args{"to": "ann@example.com"}, opts...)
		must(t, err)
		return task
	}
	at := func(id string) string { return "tasks/" + url.PathEscape(id) }
	pages := map[string]string{"failed": at(s.first.ID), "scheduled": at(create(outbox.StartAfter(time.Hour), outbox.Key("welcome-ann")).ID)}
	gone := create(outbox.StartAfter(time.Hour))
	w, err := s.Client().PostForm(s.URL+"/ops/"+at(gone.ID)+"/cancel", url.Values{"version": {strconv.FormatInt(gone.Version, 10)}, "reason": {"a test"}})
	must(t, err)
	w.Body.Close()
	if w.StatusCode != http.StatusOK { // after the redirect
		t.Fatalf("status %d", w.StatusCode)
	}
	ok := create()
	s.run(t)
	pages["cancelled"], pages["done"], pages["pending"] = at(gone.ID), at(ok.ID), at(create().ID)
	runs, parked := create(), create()
	must(t, s.db.Model(runs).Updates(map[string]any{"state": outbox.StateRunning, "process_id": "p-1", "attempt": 1, "started_at": runs.CreatedAt}).Error)
	must(t, s.db.Model(parked).Updates(map[string]any{"state": outbox.StateParked}).Error)
	pages["running"], pages["parked"] = at(runs.ID), at(parked.ID)
	now := time.Now().UTC()
	must(t, s.db.Create(&outbox.ProcessModel{ID: "p-1", Host: "shop-1", PID: 1, Slots: 10, Functions: outbox.JSON(`["mail.send"]`), StartedAt: now, BeatAt: now}).Error)
	return pages
}

// hardTexts puts tasks with long and foreign texts in every column into the shop.
func hardTexts(t *testing.T, s *shop) map[string]string {
	t.Helper()
	doc := func(v any) outbox.JSON {
		b, err := json.Marshal(v)
		must(t, err)
		return b
	}
	pages := map[string]string{}
	now := time.Now().UTC()
	for name, text := range long {
		key := name + "|" + text
		key = string([]rune(key)[:min(len([]rune(key)), 60)])
		many := strings.TrimSpace(strings.Repeat(text+" ", 10<<10/len(text)))
		must(t, s.db.Create(&outbox.HistoryModel{ID: "h-" + name, Func: text, Args: doc(map[string]any{text: many, "n": 9007199254740993}), Key: &key, Queue: name,
			RunAt: now, CreatedAt: now, Status: outbox.StatusError, Reason: outbox.ReasonInterrupted, Error: &many, FinishedAt: now, Version: 1, MaxAttempts: 3,
			Attempt: 2, StartedAt: &now, Result: doc(many), Meta: outbox.Meta{text: text},
			Errors: outbox.Attempts{{Attempt: 1, At: now, Reason: outbox.ReasonTimeout, Error: many}}}).Error)
		must(t, s.db.Create(&outbox.ProcessModel{ID: "p-" + name, Host: text, Functions: doc([]string{text}), Queues: doc([]string{text}), StartedAt: now, BeatAt: now.Add(-time.Hour)}).Error)
		must(t, s.db.Create(&outbox.AuditModel{ID: "a-" + name, At: now, Actor: text, Action: "rerun", TaskID: "h-" + name, Func: text, Reason: text, Before: doc(text), After: doc(text)}).Error)
		pages[name] = "tasks/h-" + name
	}
	return pages
}

// eachScene shows every page in every state, with all that can be unfolded unfolded.
func eachScene(t *testing.T, look func(t *testing.T, ctx context.Context, name string, show func())) {
	unfold := chromedp.Evaluate(`for (const d of document.querySelectorAll("details")) d.open = true`, nil)
	visit := func(t *testing.T, ctx context.Context, s *shop, pages map[string]string) {
		for name, page := range pages {
			look(t, ctx, name, func() {
				run(t, ctx, chromedp.Navigate(s.URL+"/ops/"+page), chromedp.WaitReady("#main"), unfold)
			})
		}
	}
	t.Run("busy", func(t *testing.T) {
		s := open(t)
		pages := everyState(t, s)
		for name, page := range map[string]string{"overview": "", "a week": "?range=7d", "tasks": "tasks", "list of due": "tasks?state=pending",
			"list of later": "tasks?state=scheduled", "list of failed": "tasks?state=failed", "list of running": "tasks?state=running", "no match": "tasks?state=done&func=nobody",
			"a notice": "tasks?state=failed&did=cancel&n=1&skipped=running.2", "functions": "functions", "processes": "processes", "audit": "audit",
			"part of the audit": "audit?action=cancel", "not found": "nowhere", "no task": "tasks/nowhere", "a bad filter": "tasks?state=odd"} {
			pages[name] = page
		}
		visit(t, browser(t, s.Server, "/nowhere", "?state=odd"), s, pages)
	})
	t.Run("asked", func(t *testing.T) {
		s := open(t)
		ctx := browser(t, s.Server, "/rerun", "/cancel")
		look(t, ctx, "what destroys", func() {
			run(t, ctx, chromedp.Navigate(s.URL+"/ops/tasks?state=failed"), chromedp.Click("[name=pick]", chromedp.ByQuery),
				chromedp.Click("button.danger", chromedp.ByQuery), chromedp.WaitVisible("[name=confirmed] + label", chromedp.ByQuery))
		})
		look(t, ctx, "bad arguments", func() {
			run(t, ctx, chromedp.Navigate(s.URL+"/ops/tasks/"+s.first.ID), chromedp.WaitReady("#main"), unfold,
				chromedp.SendKeys("textarea", "{", chromedp.ByQuery), chromedp.Click("#edit button", chromedp.ByQuery), chromedp.WaitVisible("[role=alert]", chromedp.ByQuery), unfold)
		})
		look(t, ctx, "a conflict", func() {
			task, err := outbox.Create(s.db, "mail.send", nil, outbox.StartAfter(time.Hour))
			must(t, err)
			run(t, ctx, chromedp.Navigate(s.URL+"/ops/tasks/"+task.ID), chromedp.WaitReady("#main"), unfold)
			must(t, outbox.Reschedule(s.db, task.ID, time.Now().Add(2*time.Hour)))
			run(t, ctx, chromedp.Click("#cancel button", chromedp.ByQuery), chromedp.WaitVisible(`//h1[text()="409 Conflict"]`))
		})
	})
	t.Run("hard texts", func(t *testing.T) {
		s := open(t)
		pages := hardTexts(t, s)
		for name, page := range map[string]string{"overview of them": "", "list of them": "tasks", "failed of them": "tasks?state=failed", "functions of them": "functions",
			"processes of them": "processes", "audit of them": "audit", "filter of them": "tasks?key=" + url.QueryEscape(long["nnn"])} {
			pages[name] = page
		}
		visit(t, browser(t, s.Server), s, pages)
	})
	t.Run("empty", func(t *testing.T) {
		s := fresh(t)
		visit(t, browser(t, s.Server), s, map[string]string{"no tasks yet": "", "an empty list": "tasks", "nothing failed": "tasks?state=failed", "only functions": "functions", "no processes": "processes", "no audit": "audit"})
	})
	t.Run("read-only", func(t *testing.T) {
		s := open(t)
		deny := map[admin.Action]error{}
		for _, a := range []admin.Action{admin.ViewArgs, admin.Rerun, admin.EditArgs, admin.RunNow, admin.Reschedule, admin.Cancel, admin.Discard} {
			deny[a] = errors.New("no")
		}
		s.deny.Store(&deny)
		visit(t, browser(t, s.Server), s, map[string]string{"list to read": "tasks?state=failed", "task to read": "tasks/" + s.first.ID})
	})
	t.Run("signed out", func(t *testing.T) {
		s := open(t)
		s.deny.Store(&map[admin.Action]error{admin.View: admin.ErrUnauthenticated})
		visit(t, browser(t, s.Server, "/ops/"), s, map[string]string{"who are you": ""})
	})
	t.Run("no database", func(t *testing.T) {
		s := open(t)
		w, err := s.Client().Get(s.URL + "/ops/")
		must(t, err)
		w.Body.Close()
		w, err = s.Client().PostForm(s.URL+"/ops/tasks/"+s.first.ID+"/discard", url.Values{"version": {"2"}}) // the next page asks again
		must(t, err)
		w.Body.Close()
		must(t, s.db.Migrator().DropTable("outbox_tasks"))
		visit(t, browser(t, s.Server, "/ops/tasks"), s, map[string]string{"old figures": "", "no list": "tasks"})
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
