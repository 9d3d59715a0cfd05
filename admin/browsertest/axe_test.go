package browsertest_test

import (
	"context"
	_ "embed"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"github.com/gorm-outbox/outbox"
)

// axe is axe-core as published, under the Mozilla Public License 2.0 (testdata/axe-LICENSE); nothing but this test holds it.
//
//go:embed testdata/axe-4.14.1.min.js
var axe string

// violation is what axe-core finds wrong with a page.
type violation struct {
	ID    string `json:"id"`
	Help  string `json:"help"`
	Nodes []struct {
		HTML    string `json:"html"`
		Summary string `json:"failureSummary"`
	} `json:"nodes"`
}

// violations runs axe-core in the page that is open. The browser's debugger may evaluate what the page's own policy forbids.
func violations(t *testing.T, ctx context.Context) []violation {
	t.Helper()
	var text string
	wait := func(p *runtime.EvaluateParams) *runtime.EvaluateParams { return p.WithAwaitPromise(true) }
	run(t, ctx, chromedp.Evaluate(axe+";0", nil), chromedp.Evaluate(`axe.run(document, {resultTypes: ["violations"]}).then(r => JSON.stringify(r.violations))`, &text, wait))
	var list []violation
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		t.Fatal(err)
	}
	return list
}

// everyPage has tasks in every state behind it, and opens whatever a page can unfold.
func everyPage(t *testing.T, s *shop) []string {
	t.Helper()
	later, err := outbox.Create(s.db, "mail.send", outbox.Args{"to": "ann@example.com"}, outbox.StartAfter(time.Hour), outbox.Key("welcome-ann"))
	if err != nil {
		t.Fatal(err)
	}
	gone, err := outbox.Create(s.db, "mail.send", nil, outbox.StartAfter(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	// As an administrator does, so that there is an audit.
	w, err := s.Client().PostForm(s.URL+"/ops/tasks/"+url.PathEscape(gone.ID)+"/cancel", url.Values{"version": {strconv.FormatInt(gone.Version, 10)}, "reason": {"a test"}})
	if err != nil {
		t.Fatal(err)
	}
	w.Body.Close()
	if w.StatusCode != http.StatusOK { // after the redirect
		t.Fatalf("status %d", w.StatusCode)
	}
	ok, err := outbox.Create(s.db, "mail.send", nil)
	if err != nil {
		t.Fatal(err)
	}
	s.run(t)
	if _, err := outbox.Create(s.db, "mail.send", nil); err != nil {
		t.Fatal(err)
	}
	task := func(id string) string { return "tasks/" + url.PathEscape(id) }
	return []string{"", "?range=7d", "tasks", "tasks?state=pending", "tasks?state=scheduled", "tasks?state=failed", "tasks?state=running",
		"tasks?state=done&func=nobody", "tasks?state=failed&did=rerun&n=3&skipped=running.2", task(s.first.ID), task(later.ID), task(ok.ID),
		task(gone.ID), "functions", "processes", "audit", "audit?action=cancel", "nowhere", "tasks/nowhere"}
}

// TestAxe looks at every page in both themes, the system's and the one that the button sets, with everything unfolded.
func TestAxe(t *testing.T) {
	s := open(t)
	pages := everyPage(t, s)
	ctx := browser(t, s.Server)
	for _, theme := range []string{"light", "dark"} {
		for _, page := range pages {
			run(t, ctx, emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: theme}}),
				chromedp.Navigate(s.URL+"/ops/"+page), chromedp.WaitReady("#main"),
				chromedp.Evaluate(`for (const d of document.querySelectorAll("details")) d.open = true`, nil))
			for _, v := range violations(t, ctx) {
				for _, n := range v.Nodes {
					t.Errorf("%s, /%s: %s (%s)\n%s\n%s", theme, page, v.Help, v.ID, n.HTML, n.Summary)
				}
			}
			if page == "" { // the button's theme is a rule of its own in the stylesheet
				run(t, ctx, chromedp.Click("#theme", chromedp.ByQuery))
				for _, v := range violations(t, ctx) {
					t.Errorf("after the button, from %s: %s (%s)", theme, v.Help, v.ID)
				}
				run(t, ctx, chromedp.Evaluate(`localStorage.clear()`, nil))
			}
		}
	}
}
