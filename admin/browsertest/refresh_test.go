package browsertest_test

import (
	"testing"
	"time"

	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/admin"
)

// TestLiveRefreshKeepsWhatIsTyped waits for a refresh, seen by a new task that is counted, and
// looks at the page then.
func TestLiveRefreshKeepsWhatIsTyped(t *testing.T) {
	t.Parallel()
	s := open(t)
	var scrolled float64
	ctx := browser(t, s.Server)
	run(t, ctx, chromedp.EmulateViewport(800, 300), chromedp.Navigate(s.URL+"/ops/tasks?state=failed"), chromedp.WaitVisible("tbody tr"),
		chromedp.Click("#more > summary", chromedp.ByQuery), chromedp.Click(`input[name="pick"]`, chromedp.ByQuery),
		chromedp.SendKeys(`#bulk input[name="reason"]`, "half a sen", chromedp.ByQuery), chromedp.Evaluate(`scrollTo(0, 120)`, nil), chromedp.Evaluate(`window.top0 = document.querySelector("#bulk input[name=reason]").getBoundingClientRect().top; scrollY`, &scrolled))
	if scrolled < 50 {
		t.Fatalf("the page scrolls to %v only", scrolled)
	}
	s.broken.Store(true)
	if _, err := outbox.Rerun(s.db, s.first.ID); err != nil {
		t.Fatal(err)
	}
	s.run(t)
	kept := map[string]bool{}
	run(t, ctx, chromedp.WaitVisible("#banner a"), chromedp.WaitVisible("tr.gone"), chromedp.Evaluate(`({
		tick: document.querySelector("input[name=pick]").checked,
		details: document.querySelector("#more").open,
		text: document.querySelector("#bulk input[name=reason]").value === "half a sen",
		focus: document.activeElement === document.querySelector("#bulk input[name=reason]"),
		rows: document.querySelectorAll("tbody tr").length === 1,
		scroll: Math.abs(document.querySelector("#bulk input[name=reason]").getBoundingClientRect().top - top0) < 2,
	})`, &kept))
	for what, ok := range kept {
		if !ok {
			t.Errorf("the refresh has changed the %s", what)
		}
	}
	if len(kept) != 6 {
		t.Errorf("only %d answers", len(kept))
	}
}

// TestAllStaysWhatWasTicked: who has ticked all that match has ticked those that were counted then,
// whatever comes later.
func TestAllStaysWhatWasTicked(t *testing.T) {
	t.Parallel()
	s := open(t)
	ctx := browser(t, s.Server)
	var before, after string
	seen := `document.querySelector("#all").textContent.trim() + " " + document.querySelector("[name=count]").value + " " + document.querySelector("[name=asof]").value`
	run(t, ctx, chromedp.Navigate(s.URL+"/ops/tasks?state=failed"), chromedp.WaitVisible("tbody tr"),
		chromedp.Click("[name=all]", chromedp.ByQuery), chromedp.Evaluate(seen, &before))
	s.broken.Store(true)
	_, err := outbox.Create(s.db, "mail.send", nil)
	must(t, err)
	s.run(t)
	run(t, ctx, chromedp.WaitVisible("#banner a"), chromedp.Evaluate(seen, &after))
	if before != after || before[:3] != "The" {
		t.Errorf("ticked %q, now %q", before, after)
	}
	var text string
	run(t, ctx, chromedp.Text("#picked", &text))
	if text != "all that match" {
		t.Errorf("picked is %q", text)
	}
	run(t, ctx, chromedp.Click("[name=all]", chromedp.ByQuery), chromedp.WaitVisible(`[name=count][value="2"] ~ .actions`)) // let go, it follows
}

// TestRefreshStops while it is paused, and when the session is over; it goes on after an error, and
// says so meanwhile.
func TestRefreshStops(t *testing.T) {
	t.Parallel()
	s := open(t)
	ctx := browser(t, s.Server, "/ops/tasks?state=scheduled")
	asked := make(chan int64, 100)
	chromedp.ListenTarget(ctx, func(event any) {
		if e, ok := event.(*network.EventResponseReceived); ok && e.Type == network.ResourceTypeXHR {
			asked <- e.Response.Status
		}
	})
	wait := func(status int64) {
		t.Helper()
		for deadline := time.After(time.Minute); ; {
			select {
			case got := <-asked:
				if got == status {
					return
				}
			case <-deadline:
				t.Fatalf("no refresh with %d", status)
			}
		}
	}
	deny := func(m map[admin.Action]error) { s.deny.Store(&m) }
	run(t, ctx, chromedp.Navigate(s.URL+"/ops/tasks?state=scheduled"), chromedp.WaitVisible("#live"))
	wait(200)
	var text string
	run(t, ctx, chromedp.Click("#live"), chromedp.Text("#live", &text))
	if text != "‖ Paused" {
		t.Errorf("the button says %q", text)
	}
	run(t, ctx, chromedp.Reload(), chromedp.WaitVisible("#live"), chromedp.Text("#live", &text)) // for as long as the tab lives
	if text != "‖ Paused" {
		t.Errorf("after a reload the button says %q", text)
	}
	for len(asked) > 0 {
		<-asked
	}
	select {
	case <-asked:
		t.Error("it refreshes though it is paused")
	case <-time.After(6 * time.Second):
	}
	run(t, ctx, chromedp.Click("#live"))
	wait(200) // at once

	must(t, s.db.Exec("ALTER TABLE outbox_tasks RENAME TO away").Error)
	wait(503)
	run(t, ctx, chromedp.WaitVisible("#banner"), chromedp.Text("#banner", &text))
	if text != "The last refresh failed; what is shown may be old. Trying again in 10 s." {
		t.Errorf("after an error the page says %q", text)
	}
	must(t, s.db.Exec("ALTER TABLE away RENAME TO outbox_tasks").Error)
	wait(200)
	run(t, ctx, chromedp.WaitNotVisible("#banner"))

	deny(map[admin.Action]error{admin.View: admin.ErrUnauthenticated})
	wait(401)
	run(t, ctx, chromedp.WaitVisible("#banner"), chromedp.Text("#banner", &text))
	if text != "You are signed out. Reload the page to sign in." {
		t.Errorf("signed out, the page says %q", text)
	}
	run(t, ctx, chromedp.Text("#live", &text))
	if text != "‖ Paused" {
		t.Errorf("signed out, the button says %q", text)
	}
}

// TestRefreshAsksWithATag waits for a 304, and then for a task that is new since.
func TestRefreshAsksWithATag(t *testing.T) {
	t.Parallel()
	s := open(t)
	ctx := browser(t, s.Server)
	same := make(chan struct{}, 100)
	chromedp.ListenTarget(ctx, func(event any) {
		if e, ok := event.(*network.EventResponseReceived); ok && e.Response.Status == 304 {
			same <- struct{}{}
		}
	})
	run(t, ctx, chromedp.Navigate(s.URL+"/ops/tasks?state=scheduled"), chromedp.WaitVisible(".empty"))
	select {
	case <-same:
	case <-time.After(time.Minute):
		t.Fatal("every refresh brings the whole page")
	}
	if _, err := outbox.Create(s.db, "mail.send", nil, outbox.StartAfter(time.Hour)); err != nil {
		t.Fatal(err)
	}
	run(t, ctx, chromedp.WaitVisible("tbody tr"))
}
