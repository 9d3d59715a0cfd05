package browsertest_test

import (
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/chromedp"

	"github.com/gorm-outbox/outbox"
)

// TestTools uses what needs JavaScript: copy buttons, the time in the person's own zone, shortcuts.
func TestTools(t *testing.T) {
	t.Parallel()
	s := open(t)
	later, err := outbox.Create(s.db, "mail.send", nil, outbox.StartAfter(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	ctx := browser(t, s.Server)
	var text string
	run(t, ctx, chromedp.Navigate(s.URL+"/ops/tasks/"+url.PathEscape(s.first.ID)), chromedp.WaitVisible("#err"),
		chromedp.Evaluate(`navigator.clipboard.writeText = text => { window.copied = text; return Promise.resolve() }; 0`, nil),
		chromedp.Click(`[data-copy="error-text"]`, chromedp.ByQuery), chromedp.WaitVisible(".copied"), chromedp.Evaluate("copied", &text))
	if text != "dial tcp: timeout" {
		t.Errorf("copied %q", text)
	}

	run(t, ctx, emulation.SetTimezoneOverride("Asia/Kolkata"), chromedp.Navigate(s.URL+"/ops/tasks/"+url.PathEscape(later.ID)), chromedp.WaitVisible("#time"),
		chromedp.Click("#time > summary", chromedp.ByQuery),
		chromedp.Evaluate(`(e => { e.value = "2030-01-31T12:00"; e.dispatchEvent(new Event("input", {bubbles: true})) })(document.querySelector("[name=at]"))`, nil),
		chromedp.Text("output", &text))
	if !strings.Contains(text, "5:30") || !strings.Contains(text, "Asia/") {
		t.Errorf("noon in UTC is %q", text)
	}
}

// TestShortcuts goes from page to page by letters, not while somebody types, and not when they are
// turned off.
func TestShortcuts(t *testing.T) {
	t.Parallel()
	s := open(t)
	ctx := browser(t, s.Server)
	for keys, there := range map[string]string{"gt": `.tabs a[href$="tasks"][aria-current]`, "gx": `.tabs a[href$="failed"][aria-current]`, "ga": `[name="actor"]`} {
		run(t, ctx, chromedp.Navigate(s.URL+"/ops/functions"), chromedp.WaitReady("#main"), chromedp.KeyEvent(keys), chromedp.WaitVisible(there, chromedp.ByQuery))
	}
	var text string
	run(t, ctx, chromedp.Navigate(s.URL+"/ops/tasks"), chromedp.WaitReady("#main"), input.DispatchKeyEvent(input.KeyDown).WithKey("/").WithText("/"), // a character of its own would not know of the key
		chromedp.KeyEvent("ga?/"),
		chromedp.Evaluate(`document.activeElement.name + "=" + document.activeElement.value`, &text))
	if text != "func=ga?/" {
		t.Errorf("typed %q", text)
	}
	run(t, ctx, chromedp.Navigate(s.URL+"/ops/tasks"), chromedp.WaitReady("#main"), chromedp.KeyEvent("?"), chromedp.WaitVisible("#help"),
		chromedp.Click("#use-keys", chromedp.ByQuery), chromedp.Click("#help button", chromedp.ByQuery), chromedp.WaitNotVisible("#help"),
		chromedp.KeyEvent("?"), chromedp.Evaluate(`String(document.querySelector("#help").open) + location.pathname`, &text))
	if text != "false/ops/tasks" {
		t.Errorf("turned off, they still do something: %q", text)
	}
}
