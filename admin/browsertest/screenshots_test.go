package browsertest_test

import (
	"bytes"
	"cmp"
	"context"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"

	"github.com/gorm-outbox/outbox"
)

// TestScreenshots takes pictures of the pages of a shop that has been busy for an hour: make
// screenshots.
func TestScreenshots(t *testing.T) {
	dir := os.Getenv("OUTBOX_SCREENSHOTS")
	if dir == "" {
		t.Skip("make screenshots runs it")
	}
	s := open(t)
	for _, path := range []string{"mail.sendReceipt", "stock.reserve", "orders.checkAndCancel"} {
		s.plugin.Handle(path, func(context.Context, outbox.Args) error { return nil })
	}
	for path, seed := range map[string]string{"mail.sendReceipt": "0", "stock.reserve": "3", "orders.checkAndCancel": "7"} {
		err := s.db.Exec(`INSERT INTO outbox_history (id, func, args, key, queue, priority, run_at, attempt, uncounted, crashes, max_attempts, timeout_ms, version, created_at, started_at, status, reason, error, finished_at)
			SELECT printf('0198f2a4-%04x-7c31-9a5e-%012x', i * 11 + ?, i * 7919 + ?), ?, printf('{"orderId":%d,"to":"customer-%d@example.com"}', 4000 + i, 4000 + i), NULL, 'default', 2, `+ago("0.9")+`, 1, 0, 0, 1, 0, 2, `+ago("2")+`, `+ago("0.4")+`,
			CASE WHEN bad THEN 'error' ELSE 'success' END, CASE WHEN bad THEN 'failed' ELSE '' END,
			CASE WHEN bad THEN 'dial tcp 192.0.2.25:587: i/o timeout' END, `+ago("0")+`
			FROM (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 400) SELECT i, ? = 'mail.sendReceipt' AND i % 43 = 5 AS bad FROM n)`, seed, seed, path, path).Error
		if err != nil {
			t.Fatal(err)
		}
	}
	pages := map[string]string{"overview": "", "failed": "tasks?state=failed", "tasks": "tasks", "functions": "functions", "processes": "processes", "audit": "audit",
		"empty": "tasks?state=cancelled&func=nobody", "error": "tasks/nowhere", "confirm": "tasks?state=failed"}
	for state, page := range everyState(t, s) {
		pages["task-"+state] = page
	}
	must(t, s.db.Exec(`UPDATE outbox_processes SET functions = '["mail.send","mail.sendReceipt","orders.checkAndCancel","stock.reserve"]'`).Error)
	var bad outbox.HistoryModel
	if err := s.db.Where("func = 'mail.sendReceipt' AND status = 'error'").Order("finished_at DESC").Take(&bad).Error; err != nil {
		t.Fatal(err)
	}
	pages["task-failed"] = "tasks/" + url.PathEscape(bad.ID)
	ctx := browser(t, s.Server, "/nowhere")
	for name, page := range pages {
		for _, theme := range []string{"light", "dark", "phone"} {
			width, height := int64(1200), int64(780)
			if theme == "phone" {
				width, height = 390, 780
			}
			scheme := theme
			if theme == "phone" {
				scheme = "light"
			}
			var picture []byte
			run(t, ctx, emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}),
				chromedp.EmulateViewport(width, height), chromedp.Navigate(s.URL+"/ops/"+page), chromedp.WaitReady("#main"))
			if name == "confirm" {
				run(t, ctx, chromedp.Click("[name=pick]", chromedp.ByQuery), chromedp.Click("button.danger", chromedp.ByQuery), chromedp.WaitVisible("[name=confirmed] + label"))
			}
			run(t, ctx, chromedp.CaptureScreenshot(&picture))
			if err := os.WriteFile(filepath.Join(dir, name+"-"+theme+".png"), small(t, picture), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// ago is a time of row i, which ended i*9 seconds ago, in SQLite.
func ago(more string) string {
	return `strftime('%Y-%m-%d %H:%M:%f', 'now', (i * -9 - ` + more + `) || ' seconds') || '000+00:00'`
}

// small makes a picture of a page a third of its size: with the 256 colours that it has most of.
func small(t *testing.T, picture []byte) []byte {
	t.Helper()
	from, err := png.Decode(bytes.NewReader(picture))
	if err != nil {
		t.Fatal(err)
	}
	count := map[color.Color]int{}
	size := from.Bounds()
	for y := range size.Dy() {
		for x := range size.Dx() {
			count[from.At(x, y)]++
		}
	}
	colors := make([]color.Color, 0, len(count))
	for c := range count {
		colors = append(colors, c)
	}
	slices.SortFunc(colors, func(a, b color.Color) int { return cmp.Compare(count[b], count[a]) })
	to := image.NewPaletted(size, colors[:min(len(colors), 256)])
	draw.Draw(to, size, from, size.Min, draw.Src)
	var out bytes.Buffer
	if err := (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&out, to); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}
