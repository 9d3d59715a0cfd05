package browsertest_test

import (
	"context"
	"testing"

	"github.com/chromedp/chromedp"
)

// TestNarrow looks at every page in every state at the width of a small phone, which is that of a
// screen at 400 % too: none may scroll sideways.
func TestNarrow(t *testing.T) {
	t.Parallel()
	eachScene(t, func(t *testing.T, ctx context.Context, name string, show func()) {
		var wide int
		run(t, ctx, chromedp.EmulateViewport(320, 640))
		show()
		run(t, ctx, chromedp.Evaluate("document.documentElement.scrollWidth", &wide))
		if wide != 320 {
			t.Errorf("%s is %d pixels wide", name, wide)
		}
	})
}

// TestFocusIsSeen presses the tabulator through every page: whatever has the focus has a thick
// outline, and is on the screen.
func TestFocusIsSeen(t *testing.T) {
	t.Parallel()
	s := open(t)
	everyState(t, s)
	ctx := browser(t, s.Server)
	for _, page := range []string{"", "tasks?state=failed", "tasks/" + s.first.ID, "functions", "processes", "audit"} {
		run(t, ctx, chromedp.Navigate(s.URL+"/ops/"+page), chromedp.WaitReady("#main"), chromedp.Evaluate(`for (const d of document.querySelectorAll("details")) d.open = true`, nil))
		seen := 0
		for range 200 {
			var got struct {
				Done bool
				HTML string
				OK   bool
			}
			tabKey(t, ctx)
			run(t, ctx, chromedp.Evaluate(`(e => {
				const s = getComputedStyle(e), r = e.getBoundingClientRect();
				return { Done: e === document.body || e.dataset.visited !== undefined, HTML: e.outerHTML.slice(0, 200), s: e.dataset.visited = "",
					OK: s.outlineStyle === "solid" && parseFloat(s.outlineWidth) >= 3 && r.right > 0 && r.bottom > 0 && r.left < innerWidth && r.top < innerHeight };
			})(document.activeElement)`, &got))
			if got.Done {
				break
			}
			seen++
			if !got.OK {
				t.Errorf("%s: the focus is not seen on %s", page, got.HTML)
			}
		}
		if seen < 10 || seen == 200 {
			t.Errorf("%s: %d stops", page, seen)
		}
	}
}

// TestTargets measures whatever can be pressed: 24 pixels each way, a box with its label; but for
// links in a line of text.
func TestTargets(t *testing.T) {
	t.Parallel()
	s := open(t)
	everyState(t, s)
	ctx := browser(t, s.Server)
	for _, width := range []int64{320, 1200} {
		for _, page := range []string{"", "tasks?state=failed", "tasks/" + s.first.ID, "functions", "processes", "audit"} {
			var got struct {
				N     int
				Small []string
			}
			run(t, ctx, chromedp.EmulateViewport(width, 640), chromedp.Navigate(s.URL+"/ops/"+page), chromedp.WaitReady("#main"),
				chromedp.Evaluate(`for (const d of document.querySelectorAll("details")) d.open = true`, nil), chromedp.Evaluate(`(() => {
				const all = [...document.querySelectorAll("a, button, input, select, textarea, summary")].map(e => e.type === "checkbox" ? e.closest("label") : e)
					.filter(e => e.checkVisibility() && !e.matches(".skip") && getComputedStyle(e).display !== "inline");
				const small = all.filter(e => { const r = e.getBoundingClientRect(); return r.width < 24 || r.height < 24; });
				return { N: all.length, Small: small.map(e => e.outerHTML.slice(0, 200)) };
			})()`, &got))
			for _, text := range got.Small {
				t.Errorf("/%s at %d pixels: too small: %s", page, width, text)
			}
			if got.N < 8 {
				t.Errorf("/%s: %d targets", page, got.N)
			}
		}
	}
}
