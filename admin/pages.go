package admin

import (
	"bytes"
	"cmp"
	"html/template"
	"net/http"
	"slices"
	"time"
)

// view has the values from which every page is rendered.
type view struct {
	q      *request
	Title  string
	Site   string
	Page   string
	Up     string
	Actor  string
	At     time.Time
	Notice *notice
	Data   any
}

// Can reports to a template whether to show a button.
func (v view) Can(a Action) bool { return v.q.can(a) }

// Live reports whether the page can be requested again: it is neither the answer to a form nor an
// error.
func (v view) Live() bool { return v.q.r.Method != http.MethodPost && v.Page != "error" }

// Asset is the URL of an asset.
func (v view) Asset(name string) string { return v.Up + "assets/" + assets[name].name }

func (q *request) render(status int, name, title string, data any) error {
	if name != "error" { // the error page must work without a database
		q.now() // if this fails, the page shows what was known before
	}
	v := view{q: q, Title: title, Site: q.s.opts.Title, Page: name, Up: q.up, Actor: q.actor.Name, At: q.at, Notice: q.said, Data: data}
	if v.At.IsZero() {
		v.At = time.Now()
	}
	v.At = v.At.UTC()
	var out bytes.Buffer
	if err := pages[name].ExecuteTemplate(&out, "layout.html", v); err != nil {
		q.s.opts.Logger.Error("outbox admin: render", "page", name, "err", err)
		http.Error(q.w, "internal error", http.StatusInternalServerError)
		return nil
	}
	q.w.Header().Set("Content-Type", "text/html; charset=utf-8")
	if status == http.StatusOK {
		times := []string{iso(v.At), inUTC(v.At)}
		if l, ok := data.(list); ok {
			times = append(times, template.HTMLEscapeString(l.AsOf))
		}
		if q.unchanged(out.Bytes(), times...) {
			return nil
		}
	}
	q.w.WriteHeader(status)
	q.w.Write(out.Bytes())
	return nil
}

type overview struct {
	figures
	Span  string
	Spans []string
	Stale string // why the figures are old
	Empty bool
	Max   int    // tasks in the highest bar
	Says  string // the chart in words
	Ends  [2]time.Time
	Busy  []function // the functions with the most failed, parked and other tasks
}

// barNames are the lengths of a bar of the chart.
var barNames = map[string]string{"1h": "2 minutes", "24h": "an hour", "7d": "6 hours"}

// busiest is the number of functions that the overview shows.
const busiest = 8

func (q *request) span() (string, error) {
	v := q.r.URL.Query()
	if err := only(v, "range"); err != nil {
		return "", err
	}
	span := cmp.Or(v.Get("range"), "1h")
	if _, ok := ranges[span]; !ok {
		return "", fail(http.StatusBadRequest, "range must be one of: 1h, 24h, 7d.")
	}
	return span, nil
}

func (q *request) overview() error {
	span, err := q.span()
	if err != nil {
		return err
	}
	f, stale, err := cache(q.ctx, q.s, "overview "+span, func() (figures, error) { return q.s.figures(q.ctx, span) })
	if err != nil && stale.IsZero() {
		return err
	}
	o := overview{figures: f, Span: span, Spans: []string{"1h", "24h", "7d"}}
	if err != nil {
		o.Stale = q.problem(err).Detail
	}
	n := 0
	for _, c := range f.Counts {
		n += c
	}
	o.Empty = n == 0
	ok, bad, more := 0, 0, ""
	for _, b := range f.Buckets {
		o.Max = max(o.Max, b.OK+b.Failed)
		ok, bad = ok+b.OK, bad+b.Failed
		if b.OK > maxCount || b.Failed > maxCount {
			more = " at least" // counts stop at maxCount
		}
	}
	r := ranges[span]
	step := r.length / time.Duration(r.bars)
	o.Says = "Tasks that ended in the last " + span + ":" + more + " " + grouped(ok) + " succeeded, " + grouped(bad) + " failed, at most " + grouped(o.Max) + " in " + barNames[span]
	if n := len(f.Buckets); n > 0 {
		o.Ends = [2]time.Time{f.Buckets[0].From, f.Buckets[n-1].From.Add(step)}
	}
	o.Busy = slices.Clone(f.Functions)
	slices.SortStableFunc(o.Busy, func(a, b function) int {
		return cmp.Or(b.Failed-a.Failed, b.Parked-a.Parked, (b.Waiting+b.Running+b.OK)-(a.Waiting+a.Running+a.OK))
	})
	o.Busy = o.Busy[:min(len(o.Busy), busiest)]
	title := "Overview"
	if n := f.Counts[failed]; n > 0 {
		title = num(n) + " failed · " + title
	}
	return q.render(http.StatusOK, "overview", title, o)
}

func (q *request) functions() error {
	if err := only(q.r.URL.Query()); err != nil {
		return err
	}
	list, _, err := cache(q.ctx, q.s, "functions", q.allFunctions)
	if err != nil {
		return err
	}
	return q.render(http.StatusOK, "functions", "Functions", list)
}

func (q *request) allFunctions() ([]function, error) {
	at, err := q.now()
	if err != nil {
		return nil, err
	}
	processes, err := q.s.listProcesses(q.ctx, at)
	if err != nil {
		return nil, err
	}
	return q.s.listFunctions(q.ctx, processes)
}

func (q *request) processes() error {
	list, err := q.allProcesses()
	if err != nil {
		return err
	}
	return q.render(http.StatusOK, "processes", "Processes", list)
}

func (q *request) allProcesses() ([]process, error) {
	if err := only(q.r.URL.Query()); err != nil {
		return nil, err
	}
	at, err := q.now()
	if err != nil {
		return nil, err
	}
	return q.s.listProcesses(q.ctx, at)
}
