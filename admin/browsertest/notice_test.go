package browsertest_test

import (
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"

	"github.com/gorm-outbox/outbox"
)

// TestNoticeIsSaidOnce: it leaves the URL, so that a reload does not say it again, and stays over a
// refresh.
func TestNoticeIsSaidOnce(t *testing.T) {
	t.Parallel()
	s := open(t)
	ctx := browser(t, s.Server)
	refreshed := make(chan struct{}, 100)
	chromedp.ListenTarget(ctx, func(event any) {
		if e, ok := event.(*network.EventResponseReceived); ok && e.Type == network.ResourceTypeXHR {
			refreshed <- struct{}{}
		}
	})
	var where, text string
	run(t, ctx, chromedp.Navigate(s.URL+"/ops/tasks?state=failed&func=mail.send"), chromedp.WaitVisible("tbody tr"), chromedp.Click("[name=pick]", chromedp.ByQuery),
		chromedp.Click(`button[value="rerun"]`, chromedp.ByQuery), chromedp.WaitVisible(".notice"), chromedp.Location(&where))
	if strings.Contains(where, "did=") || !strings.Contains(where, "func=mail.send") || !strings.Contains(where, "state=failed") {
		t.Errorf("it is in the URL: %s", where)
	}
	select {
	case <-refreshed:
	case <-time.After(time.Minute):
		t.Fatal("no refresh")
	}
	run(t, ctx, chromedp.WaitVisible(".notice"), chromedp.Text(".notice", &text), chromedp.Reload(), chromedp.WaitVisible("h1"), chromedp.WaitNotPresent(".notice"))
	if text != "1 task re-run." {
		t.Errorf("the notice is %q", text)
	}
}

// TestRefreshOfATaskThatIsGone says so, and stops.
func TestRefreshOfATaskThatIsGone(t *testing.T) {
	t.Parallel()
	s := open(t)
	ctx := browser(t, s.Server, "/ops/tasks/"+s.first.ID)
	var banner, live string
	run(t, ctx, chromedp.Navigate(s.URL+"/ops/tasks/"+s.first.ID), chromedp.WaitVisible("#err"))
	must(t, s.db.Where("1 = 1").Delete(&outbox.HistoryModel{}).Error)
	run(t, ctx, chromedp.WaitVisible("#banner"), chromedp.Text("#banner", &banner), chromedp.Text("#live", &live))
	if banner != "This task is gone: it is not in history any more." || live != "‖ Paused" {
		t.Errorf("the page says %q, the button %q", banner, live)
	}
}

// TestRefreshWithoutAnAnswer: the page to sign in at may be another origin's, where a script cannot
// follow.
func TestRefreshWithoutAnAnswer(t *testing.T) {
	t.Parallel()
	s := open(t)
	ctx := browser(t, s.Server, "/ops/tasks")
	var banner string
	run(t, ctx, chromedp.Navigate(s.URL+"/ops/tasks"), chromedp.WaitVisible("tbody tr"))
	s.CloseClientConnections()
	s.Listener.Close()
	run(t, ctx, chromedp.WaitVisible("#banner"), chromedp.Text("#banner", &banner))
	if !strings.HasPrefix(banner, "The last refresh got no answer") || !strings.Contains(banner, "signed out: reload the page") {
		t.Errorf("the page says %q", banner)
	}
}
