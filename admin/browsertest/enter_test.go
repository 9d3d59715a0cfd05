package browsertest_test

import (
	"strings"
	"testing"

	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/gorm-outbox/outbox"
)

// TestEnterChangesNothing presses it where somebody types a reason and where somebody ticks a row:
// neither is a button.
func TestEnterChangesNothing(t *testing.T) {
	t.Parallel()
	s := open(t)
	ctx := browser(t, s.Server)
	sent := make(chan string, 10)
	chromedp.ListenTarget(ctx, func(event any) {
		if e, ok := event.(*network.EventRequestWillBeSent); ok && e.Request.Method == "POST" {
			sent <- e.Request.URL
		}
	})
	for _, field := range []string{`#bulk input[name="reason"]`, `#bulk input[name="pick"]`} {
		run(t, ctx, chromedp.Navigate(s.URL+"/ops/tasks?state=failed"), chromedp.WaitVisible("tbody tr"),
			chromedp.Click(`input[name="pick"]`, chromedp.ByQuery), chromedp.Focus(field, chromedp.ByQuery), chromedp.KeyEvent(kb.Enter))
	}
	var text string
	run(t, ctx, chromedp.Navigate(s.URL+"/ops/audit"), chromedp.WaitVisible("main"), chromedp.Text("main", &text))
	if !strings.Contains(text, "Nobody has changed anything") {
		t.Errorf("the audit says %s", text)
	}
	for len(sent) > 0 {
		t.Errorf("Enter sent a form to %s", <-sent)
	}
	var n int64
	if err := s.db.Model(&outbox.AuditModel{}).Count(&n).Error; err != nil || n != 0 {
		t.Errorf("%d changes, %v", n, err)
	}
	run(t, ctx, chromedp.Navigate(s.URL+"/ops/tasks?state=failed"), chromedp.WaitVisible("tbody tr"), chromedp.Click(`input[name="pick"]`, chromedp.ByQuery),
		chromedp.Focus(`#bulk button[name="action"]`, chromedp.ByQuery), chromedp.KeyEvent(kb.Enter), chromedp.WaitVisible(".notice"))
}
