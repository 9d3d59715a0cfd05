package admin

import (
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/gorm-outbox/outbox"
)

type list struct {
	Filter       filter
	Rows         []row
	Newer, Older string // links; empty where the list ends
	Tabs         []tab
	Functions    []string
	Total        int // tasks that the filter finds; -1 if unknown
	Shown        string
	Bulk         []Action
	AsOf         string
	Partial      bool              // the search stopped before the end
	Hosts        map[string]string // of the processes that run the listed tasks
	Here         string            // the list's filter, for the link back to it
	again
}

// again is a form of the list that was refused, with its values.
type again struct {
	Refused, Reason, Start string
	Picked                 []string
	All                    bool
}

// Has reports whether a row was picked at this version.
func (a again) Has(r row) bool {
	return slices.Contains(a.Picked, r.ID+"."+strconv.FormatInt(r.Version, 10))
}

type tab struct {
	State string
	Count int // -1 if unknown
	Link  string
}

func (q *request) list() error {
	v := q.r.URL.Query()
	if err := only(v, append(slices.Clone(filterParams), noticeParams...)...); err != nil {
		return err
	}
	if err := q.noticed(v); err != nil {
		return err
	}
	return q.showList(http.StatusOK, v, again{})
}

// listAgain shows the list with the refused form, so that the sender need not fill it in again.
func (q *request) listAgain(filter, form url.Values, p *problem) error {
	a := again{Refused: p.Detail, Reason: form.Get("reason"), Picked: form["pick"], All: form.Get("all") != ""}
	if at, err := parseTime(form.Get("at")); err == nil {
		a.Start = fieldTime(at)
	}
	return q.showList(p.Status, filter, a)
}

func (q *request) showList(status int, v url.Values, a again) error {
	f, p, at, err := q.find(v)
	if err != nil {
		return err
	}
	l := list{again: a, Filter: f, Rows: p.rows, Total: -1, AsOf: at.Format(time.RFC3339Nano)}
	link := func(c *cursor) string {
		if c == nil {
			return ""
		}
		g := f
		g.Cursor = c
		return g.url()
	}
	l.Newer, l.Older = link(p.newer), link(p.older)
	l.Here = f.origin()
	if slices.ContainsFunc(p.rows, func(r row) bool { return r.State == outbox.StateRunning }) {
		processes, err := q.s.listProcesses(q.ctx, at)
		if err != nil {
			return err
		}
		l.Hosts = map[string]string{}
		for _, p := range processes {
			l.Hosts[p.ID] = p.Host
		}
	}
	l.Partial = len(p.rows) < f.Limit && p.older != nil
	counts, _, err := cache(q.ctx, q.s, "counts", func() (map[string]int, error) { return q.s.counts(q.ctx, at) })
	if err != nil {
		q.problem(err) // the list is shown anyway
	}
	for _, state := range states {
		n, ok := counts[state]
		if !ok {
			n = -1
		}
		l.Tabs = append(l.Tabs, tab{state, n, f.with(state).url()})
	}
	l.Functions = q.s.inside().Functions
	for _, a := range bulkOf(f.State) {
		if q.can(a) {
			l.Bulk = append(l.Bulk, a)
		}
	}
	switch {
	case len(l.Bulk) == 0 || f.Args != "" && q.s.opts.Redact != nil:
	case f.Cursor == nil && p.older == nil:
		l.Total, l.Shown = len(p.rows), sealRows(p.rows)
	default:
		if l.Shown, l.Total, err = q.s.seen(q.ctx, f, at); err != nil {
			l.Total = -1
			q.problem(err)
		}
	}
	if !q.can(ViewArgs) {
		for i := range l.Rows {
			l.Rows[i].Args = nil
		}
	} else if q.s.opts.Redact != nil {
		for i, r := range l.Rows {
			if r.Args != nil {
				shown := string(q.s.redact(r.Func, []byte(*r.Args)))
				l.Rows[i].Args = &shown
			}
		}
	}
	return q.render(status, "list", stateNames[f.State]+" tasks", l)
}

// bulkOf returns the actions that make sense for all tasks of a state.
func bulkOf(state string) []Action {
	switch state {
	case pending:
		return []Action{Reschedule, Cancel}
	case parked: // until a process runs the function, little else can be done
		return []Action{Cancel, RunNow, Reschedule}
	case scheduled:
		return []Action{RunNow, Reschedule, Cancel}
	case failed:
		return []Action{Rerun, Discard}
	case done, cancelled:
		return []Action{Rerun}
	}
	return nil
}

// find reads the part of a list that the parameters select.
func (q *request) find(v url.Values) (f filter, p page, at time.Time, err error) {
	if f, err = q.parseFilter(v); err != nil {
		return f, p, at, err
	}
	if at, err = q.now(); err != nil {
		return f, p, at, err
	}
	p, err = q.s.fetch(q.ctx, f, at)
	return f, p, at, err
}
