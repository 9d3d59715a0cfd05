package admin

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/gorm-outbox/outbox"
)

//go:embed templates assets
var files embed.FS

// pages are the templates by name, each with the layout around it.
var pages = parse()

func parse() map[string]*template.Template {
	out := map[string]*template.Template{}
	for _, name := range []string{"overview", "list", "detail", "functions", "processes", "audit", "confirm", "error"} {
		out[name] = template.Must(template.New(name).Funcs(funcs).ParseFS(files, "templates/layout.html", "templates/"+name+".html"))
	}
	return out
}

// assets are embedded files by name. Their URLs have a hash, so a browser may keep them for ever.
var assets = hashed()

type file struct {
	name, kind string
	content    []byte
}

func hashed() map[string]file {
	out := map[string]file{}
	for name, kind := range map[string]string{"admin.css": "text/css; charset=utf-8", "admin.js": "text/javascript; charset=utf-8", "theme.js": "text/javascript; charset=utf-8"} {
		content, err := files.ReadFile("assets/" + name)
		if err != nil {
			panic(err)
		}
		sum := sha256.Sum256(content)
		ext := path.Ext(name)
		out[name] = file{strings.TrimSuffix(name, ext) + "." + hex.EncodeToString(sum[:8]) + ext, kind, content}
	}
	return out
}

func (q *request) asset(name string) {
	for _, f := range assets {
		if f.name == name && (q.r.Method == http.MethodGet || q.r.Method == http.MethodHead) {
			q.w.Header().Set("Content-Type", f.kind)
			q.w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
			q.w.Write(f.content)
			return
		}
	}
	q.w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	q.w.WriteHeader(http.StatusNotFound)
}

var stateNames = map[string]string{all: "All", pending: "Pending", scheduled: "Scheduled", running: "Running", parked: "Parked",
	failed: "Failed", handled: "Re-run", done: "Done", cancelled: "Cancelled"}

var stateIcons = map[string]string{pending: "○", scheduled: "◷", running: "▶", parked: "‖", failed: "✕", handled: "↻", done: "✓", cancelled: "⊘"}

var actionNames = map[Action]string{Rerun: "Re-run", RunNow: "Run now", Reschedule: "Reschedule", Cancel: "Cancel", Discard: "Discard"}

var didNames = map[Action]string{Rerun: "re-run", RunNow: "made due", Reschedule: "rescheduled", Cancel: "cancelled", Discard: "discarded"}

var funcs = template.FuncMap{
	"ago": func(t, at time.Time) string {
		d := at.Sub(t)
		if d < 0 {
			return "in " + span(-d)
		}
		return span(d) + " ago"
	},
	"since":  func(t, at time.Time) string { return span(at.Sub(t)) },
	"iso":    iso,
	"utc":    inUTC,
	"field":  fieldTime,
	"clock":  func(t time.Time) string { return t.UTC().Format("01-02 15:04") },
	"span":   span,
	"num":    num,
	"path":   url.PathEscape,
	"short":  shorten,
	"first":  firstLine,
	"state":  func(s string) string { return stateNames[s] },
	"icon":   func(s string) string { return stateIcons[s] },
	"action": func(a any) string { return actionNames[Action(fmt.Sprint(a))] },
	"did":    func(a Action) string { return didNames[a] },
	"text": func(s *string) string {
		if s == nil {
			return ""
		}
		return *s
	},
	"rowState": func(r row, at time.Time) string { return r.state(at) },
	"export": func(f filter, format string) string {
		f.Cursor, f.Limit = nil, defaultLimit
		v := f.values()
		v.Set("format", format)
		return "export?" + v.Encode()
	},
	"encoded": func(f filter) string { f.Cursor = nil; return f.values().Encode() },
	"find": func(state, path, text string) string {
		f := filter{State: state, Func: path, Error: shorten(strings.TrimSuffix(text, "…"), maxParam/4), Limit: defaultLimit}
		f.Error = strings.TrimSuffix(f.Error, "…")
		return f.url()
	},
	"px":      pixels,
	"sub":     func(a, b int) int { return a - b },
	"mul":     func(a, b int) int { return a * b },
	"millis":  func(ms int64) string { return span(time.Duration(ms) * time.Millisecond) },
	"deref":   func(t *time.Time) time.Time { return *t },
	"took":    func(d *time.Duration) string { return span(*d) },
	"between": func(a *time.Time, b time.Time) string { return span(b.Sub(*a)) },
	"bars":    heights,
	"lines":   func(s string) int { return strings.Count(strings.TrimSuffix(s, "\n"), "\n") + 1 },
	"why":     why,
	"raw":     func(j outbox.JSON) string { return j.String() },
}

// why is what a reason adds to the state.
func why(reason any) string {
	switch text := fmt.Sprint(reason); outbox.Reason(text) {
	case outbox.ReasonFailed, outbox.ReasonCancelled:
		return ""
	case outbox.ReasonInterrupted:
		return "interrupted, what it did is not known"
	case outbox.ReasonBadArgs:
		return "arguments do not fit"
	case outbox.ReasonBadResult:
		return "the result could not be stored"
	default:
		return text
	}
}

func iso(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// fieldTime formats a time for an input field.
func fieldTime(t time.Time) string {
	switch {
	case t.IsZero():
		return ""
	case t.Second() == 0 && t.Nanosecond() == 0:
		return t.Format("2006-01-02T15:04")
	}
	return t.Format("2006-01-02T15:04:05.999")
}

func inUTC(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

// pixels is the height of a bar in a chart whose highest bar has most tasks. A bar with a task is
// always visible.
func pixels(n, most, height int) int {
	if n <= 0 {
		return 0
	}
	return (n*height + most - 1) / most
}

// heights are the heights of bars for durations, in 16 units.
func heights(list []time.Duration) []int {
	out := make([]int, len(list))
	most := max(slices.Max(append(list, 0)), 1)
	for i, d := range list {
		out[i] = max(1, int(d*16/most))
	}
	return out
}

// num formats a count. A count above maxCount is "10,000+".
func num(n int) string {
	suffix := ""
	if n > maxCount {
		n, suffix = maxCount, "+"
	}
	return grouped(n) + suffix
}

func grouped(n int) string {
	s := itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// span formats a duration in the one or two units that matter.
func span(d time.Duration) string {
	switch d = d.Abs(); {
	case d < time.Millisecond:
		return "0 ms"
	case d < time.Second:
		return itoa(int(d/time.Millisecond)) + " ms"
	case d < 10*time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d < 2*time.Minute:
		return itoa(int(d/time.Second)) + " s"
	case d < 2*time.Hour:
		return itoa(int(d/time.Minute)) + " min"
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h %d min", d/time.Hour, d%time.Hour/time.Minute)
	}
	return itoa(int(d/(24*time.Hour))) + " days"
}

func retention(d time.Duration) string {
	if d < 0 {
		return "ever"
	}
	return span(d)
}
