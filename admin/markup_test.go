package admin_test

import (
	"fmt"
	"math"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/admin"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

// TestMarkup looks at what every page owes those who do not see it. What axe-core finds in a
// browser is in browsertest.
func TestMarkup(t *testing.T) {
	d := open(t, testdb.SQLite(t), admin.Options{})
	bad, again := d.failed(), d.failed()
	_, err := outbox.Rerun(d.db, again.ID)
	must(t, err)
	tasks := map[string]string{"failed": bad.ID, "handled": again.ID, "done": d.create().ID}
	_, err = d.p.RunDue(t.Context())
	must(t, err)
	gone := d.create(outbox.StartAfter(time.Hour)).ID
	must(t, outbox.Cancel(d.db, gone))
	tasks["cancelled"], tasks["pending"], tasks["scheduled"] = gone, d.create().ID, d.create(outbox.StartAfter(time.Hour)).ID
	for _, state := range []string{"running", "parked"} {
		task := d.create()
		must(t, d.db.Model(task).Updates(map[string]any{"state": state, "process_id": "p-1", "started_at": task.CreatedAt}).Error)
		tasks[state] = task.ID
	}
	must(t, d.db.Create(&outbox.ProcessModel{ID: "p-1", Host: "h", Functions: outbox.JSON(`["mail.send"]`), StartedAt: time.Now(), BeatAt: time.Now()}).Error)
	status(t, d.post("tasks/"+tasks["scheduled"]+"/reschedule", form(1, "at", "2099-01-01")), 303)
	d = open2(t, d)

	pages := []string{"", "tasks", "functions", "processes", "audit", "nope"}
	for state, id := range tasks {
		pages = append(pages, "tasks?state="+state, "tasks/"+id)
	}
	titles := map[string]string{}
	for _, page := range pages {
		text := d.get(page).Body.String()
		for _, part := range []string{`<html lang="en">`, `<a class="skip" href="#main">`, `<main id="main"`, `<header>`, `<footer>`, `<nav aria-label="Pages">`, "<h1"} {
			if n := strings.Count(text, part); n != 1 {
				t.Errorf("%s: %s is there %d times", page, part, n)
			}
		}
		title := regexp.MustCompile(`<title>(.*?)</title>`).FindStringSubmatch(text)[1]
		if other, taken := titles[title]; taken {
			t.Errorf("%s and %s are both called %s", page, other, title)
		}
		titles[title] = page
		if n, captions := strings.Count(text, "<table"), regexp.MustCompile(`<table[^>]*><caption[^>]*>[^<]+</caption>`).FindAllString(text, -1); n != len(captions) {
			t.Errorf("%s: %d tables, %d captions", page, n, len(captions))
		}
		if th := regexp.MustCompile(`<th(?:>| [^>]*>)`).FindAllString(text, -1); len(th) != strings.Count(text, ` scope="col"`)+strings.Count(text, ` scope="row"`) {
			t.Errorf("%s: of %d headers some have no scope", page, len(th))
		}
		for _, m := range regexp.MustCompile(`<time ([^>]*)>([^<]*)</time>`).FindAllStringSubmatch(text, -1) {
			if !regexp.MustCompile(`datetime="[0-9T:.-]+Z"`).MatchString(m[1]) || !strings.Contains(m[1]+m[2], " UTC") {
				t.Errorf("%s: a time without its zone: %s", page, m[0])
			}
		}
		for _, m := range regexp.MustCompile(`<input [^>]*name="pick" value="(.*?)\.\d+"><span class="hide">(.*?)</span>`).FindAllStringSubmatch(text, -1) {
			if m[2] != "Pick mail.send "+m[1] {
				t.Errorf("%s: a box is called %s", page, m[2])
			}
		}
	}
	css := asset(t, "admin.css")
	for state, word := range map[string]string{"failed": "✕</span> Failed", "handled": "↻</span> Re-run", "done": "✓</span> Done", "cancelled": "⊘</span> Cancelled",
		"pending": "○</span> Pending", "scheduled": "◷</span> Scheduled", "running": "▶</span> Running", "parked": "‖</span> Parked"} {
		badge := `<span class="state ` + state + `"><span aria-hidden="true">` + word + `</span>`
		has(t, status(t, d.get("tasks"), 200), badge)
		has(t, status(t, d.get("tasks/"+tasks[state]), 200), badge)
		list := status(t, d.get("tasks?state="+state), 200)
		has(t, list, badge)
		sorted := "descending"
		if state == "pending" || state == "scheduled" {
			sorted = "ascending"
		}
		has(t, list, `aria-sort="`+sorted+`">When`)
		if !regexp.MustCompile(`\.` + state + `[,. a-z]* \{ --c: var`).MatchString(css) {
			t.Errorf("%s has no colour", state)
		}
	}
	has(t, status(t, d.get("tasks?did=reschedule&n=1"), 200), `<p class="notice" role="status">1 task rescheduled.</p>`, `<p id="banner" role="status"`)
	has(t, status(t, d.get("tasks/"+tasks["failed"]), 200), "(", " ago)", " UTC", "Start") // relative, absolute and zone, to be read without a pointer
}

// TestChartSaysWhatItShows: the bars, their text and their table are of the same numbers.
func TestChartSaysWhatItShows(t *testing.T) {
	d := open(t, testdb.SQLite(t), admin.Options{})
	for range 3 {
		d.create()
	}
	_, err := d.p.RunDue(t.Context())
	must(t, err)
	d.failed()
	d.failed()
	must(t, d.db.Model(&outbox.HistoryModel{}).Where("1 = 1").Update("finished_at", time.Now().Add(-20*time.Minute)).Error) // in one bar
	text := status(t, d.get(""), 200)
	has(t, text, `role="img" aria-label="Tasks that ended in the last 1h: 3 succeeded, 2 failed, at most 5 in 2 minutes; the table below has the numbers"`)
	ends := regexp.MustCompile(`<p class="ends"><time datetime="([^"]+)"[^>]*>\d\d-\d\d \d\d:\d\d</time> <time datetime="([^"]+)"[^>]*>\d\d-\d\d \d\d:\d\d</time></p>`).FindStringSubmatch(text)
	if ends == nil {
		t.Fatal("the chart has no times at its ends")
	}
	from, err := time.Parse(time.RFC3339, ends[1])
	must(t, err)
	to, err := time.Parse(time.RFC3339, ends[2])
	must(t, err)
	if to.Sub(from) != time.Hour || time.Until(to) < 0 || time.Until(to) > 2*time.Minute {
		t.Errorf("it goes from %s to %s", from, to)
	}
	bars := map[string]int{}
	for _, m := range regexp.MustCompile(`<rect class="(ok|bad)"[^>]* height="(\d+)"/>`).FindAllStringSubmatch(text, -1) {
		n, _ := strconv.Atoi(m[2])
		bars[m[1]] += n
	}
	sums := [2]int{}
	rows := regexp.MustCompile(`<tr><th scope="row">[^<]*</th><td>(\d+)</td><td>(\d+)</td></tr>`).FindAllStringSubmatch(text, -1)
	for _, m := range rows {
		for i := range sums {
			n, _ := strconv.Atoi(m[i+1])
			sums[i] += n
		}
	}
	if len(rows) != 30 || sums != [2]int{3, 2} {
		t.Errorf("%d rows, sums %v", len(rows), sums)
	}
	if bars["ok"] <= bars["bad"] || bars["bad"] == 0 {
		t.Errorf("bars %v for %v", bars, sums)
	}
}

func asset(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile("assets/" + name)
	must(t, err)
	return string(b)
}

// TestContrast computes what WCAG 2.2 asks for, of every colour of either theme on whatever it
// stands.
func TestContrast(t *testing.T) {
	css := asset(t, "admin.css")
	blocks := regexp.MustCompile(`--bg:[^}]*`).FindAllString(css, -1)
	if len(blocks) != 3 || blocks[1] != strings.TrimSpace(blocks[2]) && strings.TrimSpace(blocks[1]) != strings.TrimSpace(blocks[2]) {
		t.Fatalf("the dark theme is not the same twice: %q", blocks)
	}
	for name, block := range map[string]string{"light": blocks[0], "dark": blocks[1]} {
		colors := map[string]string{}
		for _, m := range regexp.MustCompile(`--([a-z]+): (#[0-9a-f]+)`).FindAllStringSubmatch(block, -1) {
			colors[m[1]] = m[2]
		}
		check := func(least float64, front string, on ...string) {
			t.Helper()
			for _, back := range on {
				if got := contrast(t, colors[front], colors[back]); got < least {
					t.Errorf("%s: %s on %s is %.2f : 1, less than %.1f", name, front, back, got, least)
				}
			}
		}
		for _, text := range []string{"text", "dim", "link", "red", "green", "blue", "amber", "violet"} {
			check(4.5, text, "bg", "box")
		}
		check(4.5, "red", "redbg")
		check(4.5, "amber", "amberbg")
		check(4.5, "box", "link") // the main button
		check(3, "line", "bg", "box")
	}
	// Nothing moves for who does not want it.
	calm := regexp.MustCompile(`@media \(prefers-reduced-motion: no-preference\) \{.*\}`).ReplaceAllString(css, "")
	hasNot(t, calm, "transition", "animation", "@keyframes", "scroll-behavior")
}

func contrast(t *testing.T, a, b string) float64 {
	t.Helper()
	light := func(s string) float64 {
		s = strings.TrimPrefix(s, "#")
		if len(s) == 3 {
			s = fmt.Sprintf("%c%c%c%c%c%c", s[0], s[0], s[1], s[1], s[2], s[2])
		}
		n, err := strconv.ParseUint(s, 16, 24)
		if err != nil {
			t.Fatalf("no colour: %q", s)
		}
		channel := func(shift int) float64 {
			c := float64(n>>shift&0xff) / 255
			if c <= 0.04045 {
				return c / 12.92
			}
			return math.Pow((c+0.055)/1.055, 2.4)
		}
		return 0.2126*channel(16) + 0.7152*channel(8) + 0.0722*channel(0)
	}
	x, y := light(a), light(b)
	return (max(x, y) + 0.05) / (min(x, y) + 0.05)
}
