package browsertest_test

import (
	"strings"
	"testing"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
)

// TestWithoutJavaScript searches, opens, re-runs, picks, discards and looks it up, in a browser
// that runs no script.
func TestWithoutJavaScript(t *testing.T) {
	t.Parallel()
	s := open(t)
	ctx := browser(t, s.Server)
	var text, where string
	run(t, ctx, emulation.SetScriptExecutionDisabled(true), chromedp.Navigate(s.URL+"/ops/"), chromedp.WaitVisible("#trouble"),
		chromedp.Click("a.card.failed", chromedp.ByQuery), chromedp.WaitVisible("tbody tr"),
		chromedp.SendKeys("[name=error]", "timeout", chromedp.ByQuery), chromedp.Click("[role=search] > button", chromedp.ByQuery), chromedp.WaitVisible("[role=search] > a"),
		chromedp.Click("tbody th a", chromedp.ByQuery), chromedp.WaitVisible("#err"),
		chromedp.SendKeys("form.row [name=reason]", "no script", chromedp.ByQuery), chromedp.Click("button.main", chromedp.ByQuery), chromedp.WaitVisible(".notice"),
		chromedp.Text(".notice", &text))
	if text != "1 task re-run." {
		t.Errorf("the notice is %q", text)
	}
	s.broken.Store(true)
	s.run(t)
	run(t, ctx, chromedp.Navigate(s.URL+"/ops/tasks?state=failed&func=mail.send"), chromedp.Click("[name=pick]", chromedp.ByQuery),
		chromedp.Click("button.danger", chromedp.ByQuery), chromedp.WaitVisible("[name=confirmed] + label"), chromedp.Text("h1", &text))
	if text != "Discard 1 task?" {
		t.Errorf("it asks %q", text)
	}
	run(t, ctx, chromedp.Click("button.danger", chromedp.ByQuery), chromedp.WaitVisible(".notice"), chromedp.Text(".notice", &text), chromedp.Location(&where))
	if text != "1 task discarded." || !strings.Contains(where, "func=mail.send") || !strings.Contains(where, "state=failed") {
		t.Errorf("at %s the notice is %q", where, text)
	}
	run(t, ctx, chromedp.Navigate(s.URL+"/ops/audit?action=rerun"), chromedp.WaitVisible("tbody tr"), chromedp.Text("tbody", &text))
	if !strings.Contains(text, "no script") {
		t.Errorf("the audit says %q", text)
	}
	for _, id := range []string{"live", "theme", "keys"} { // what would do nothing is not there
		run(t, ctx, chromedp.WaitNotVisible("#"+id))
	}
}

// TestSameView: a search, its reload, its URL in another tab and the way back to it show the same.
func TestSameView(t *testing.T) {
	t.Parallel()
	s := open(t)
	everyState(t, s)
	ctx := browser(t, s.Server)
	var first, again, where string
	view := `JSON.stringify([document.title, location.search, [...document.querySelectorAll("tbody tr")].map(e => e.id), [...document.querySelectorAll("[role=search] input")].map(e => e.value)])`
	run(t, ctx, chromedp.Navigate(s.URL+"/ops/tasks?state=failed"), chromedp.WaitVisible("tbody tr"),
		chromedp.SendKeys("[name=error]", "dial", chromedp.ByQuery), chromedp.SendKeys("[name=func]", "mail.send", chromedp.ByQuery),
		chromedp.Click("[role=search] > button", chromedp.ByQuery), chromedp.WaitVisible("[role=search] > a"), chromedp.Evaluate(view, &first), chromedp.Location(&where))
	if !strings.Contains(first, "t-"+s.first.ID) || !strings.Contains(first, "dial") {
		t.Fatalf("the search shows %s", first)
	}
	run(t, ctx, chromedp.Reload(), chromedp.WaitVisible("tbody tr"), chromedp.Evaluate(view, &again))
	if again != first {
		t.Errorf("a reload shows %s, not %s", again, first)
	}
	run(t, ctx, chromedp.Click("tbody th a", chromedp.ByQuery), chromedp.WaitVisible("#err"), chromedp.Evaluate("history.back(); 0", nil), chromedp.WaitVisible("#bulk tbody tr"), chromedp.Evaluate(view, &again))
	if again != first {
		t.Errorf("the way back shows %s, not %s", again, first)
	}
	run(t, ctx, chromedp.Navigate("about:blank"), chromedp.Navigate(where), chromedp.WaitVisible("tbody tr"), chromedp.Evaluate(view, &again))
	if again != first {
		t.Errorf("the URL shows %s, not %s", again, first)
	}
}

// TestTheme follows the system until the button is pressed; then that stays, and is there before
// the page is drawn.
func TestTheme(t *testing.T) {
	t.Parallel()
	s := open(t)
	ctx := browser(t, s.Server)
	is := func(what, want string) {
		t.Helper()
		var got string
		run(t, ctx, chromedp.Evaluate(`getComputedStyle(document.body).backgroundColor`, &got))
		if got != want {
			t.Errorf("%s the page is %s, want %s", what, got, want)
		}
	}
	const light, dark = "rgb(246, 247, 249)", "rgb(15, 19, 24)"
	system := func(theme string) chromedp.Action {
		return emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: theme}})
	}
	run(t, ctx, system("dark"), chromedp.Navigate(s.URL+"/ops/"), chromedp.WaitReady("#main"))
	is("in a dark system", dark)
	run(t, ctx, system("light"))
	is("in a light system", light)
	run(t, ctx, chromedp.Click("#theme"))
	is("after the button", dark)
	// What is in the head has run by the time that the body begins.
	run(t, ctx, chromedp.Navigate(s.URL+"/ops/tasks"), chromedp.WaitReady("#main"))
	is("on the next page", dark)
	var blocking bool
	run(t, ctx, chromedp.Evaluate(`(s => !s.defer && !s.async && s.type === "" && s.parentNode === document.head)(document.querySelector("script[src*=theme]"))`, &blocking))
	if !blocking {
		t.Error("the theme comes after the first paint")
	}
	run(t, ctx, chromedp.Click("#theme"), chromedp.Reload(), chromedp.WaitReady("#main"), system("dark"))
	is("after the button again, in a dark system", light)
}
