package browsertest_test

import (
	"context"
	_ "embed"
	"encoding/json"
	"testing"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// axe is axe-core as published, under the Mozilla Public License 2.0 (testdata/axe-LICENSE);
// nothing but this test holds it.
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

// violations runs axe-core in the page that is open. The browser's debugger may evaluate what the
// page's own policy forbids.
func violations(t *testing.T, ctx context.Context) []violation {
	t.Helper()
	var text string
	wait := func(p *runtime.EvaluateParams) *runtime.EvaluateParams { return p.WithAwaitPromise(true) }
	run(t, ctx, chromedp.Evaluate(axe+";0", nil), chromedp.Evaluate(`axe.run(document, {resultTypes: ["violations"], rules: {"target-size": {enabled: true}}}).then(r => JSON.stringify(r.violations))`, &text, wait))
	var list []violation
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		t.Fatal(err)
	}
	return list
}

// TestAxe looks at every page in every state and both themes, the system's and the one that the
// button sets, with everything unfolded.
func TestAxe(t *testing.T) {
	t.Parallel()
	eachScene(t, func(t *testing.T, ctx context.Context, name string, show func()) {
		for _, theme := range []string{"light", "dark"} {
			run(t, ctx, emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: theme}}))
			show()
			for _, v := range violations(t, ctx) {
				for _, n := range v.Nodes {
					t.Errorf("%s, %s: %s (%s)\n%s\n%s", theme, name, v.Help, v.ID, n.HTML, n.Summary)
				}
			}
			if name == "overview" { // the button's theme is a rule of its own in the stylesheet
				run(t, ctx, chromedp.Click("#theme", chromedp.ByQuery))
				for _, v := range violations(t, ctx) {
					t.Errorf("after the button, from %s: %s (%s)", theme, v.Help, v.ID)
				}
				run(t, ctx, chromedp.Evaluate(`localStorage.clear()`, nil))
			}
		}
	})
}
