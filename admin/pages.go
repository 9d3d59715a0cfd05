package admin

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"html/template"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/gorm-outbox/outbox"
)

func asMax(err error, big **http.MaxBytesError) bool { return errors.As(err, big) }

// view is what every page is rendered from.
type view struct {
	q      *request
	Title  string
	Site   string
	Page   string
	Up     string
	Actor  string
	Query  string
	At     time.Time
	Notice *notice
	Data   any
}

// Can is for templates: whether to show a button.
func (v view) Can(a Action) bool { return v.q.can(a) }

// Asset is the URL of an asset.
func (v view) Asset(name string) string { return v.Up + "assets/" + assets[name].name }

func (q *request) render(status int, name, title string, data any) error {
	v := view{q: q, Title: title, Site: q.s.opts.Title, Page: name, Up: q.up, Actor: q.actor.Name, At: time.Now().UTC(), Data: data}
	if q.r.Method == http.MethodGet {
		v.Notice = parseNotice(q.r.URL.Query())
	}
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
	Stale time.Time
	Empty bool
	Max   int
	Busy  []function // those with the most to tell
}

// busiest is how many functions the overview shows.
const busiest = 8

func (q *request) span() (string, error) {
	v := q.r.URL.Query()
	if err := only(v, append([]string{"range"}, noticeParams...)...); err != nil {
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
	o := overview{figures: f, Span: span, Spans: []string{"1h", "24h", "7d"}, Stale: stale}
	n := 0
	for _, c := range f.Counts {
		n += c
	}
	o.Empty = n == 0
	for _, b := range f.Buckets {
		o.Max = max(o.Max, b.OK+b.Failed)
	}
	o.Busy = slices.Clone(f.Functions)
	slices.SortStableFunc(o.Busy, func(a, b function) int {
		return cmp.Or(b.Failed-a.Failed, b.Parked-a.Parked, (b.Waiting+b.Running+b.OK)-(a.Waiting+a.Running+a.OK))
	})
	o.Busy = o.Busy[:min(len(o.Busy), busiest)]
	return q.render(http.StatusOK, "overview", "Overview", o)
}

type list struct {
	Filter       filter
	Rows         []row
	Newer, Older string // links, empty where there is nothing
	Tabs         []tab
	Functions    []string
	Total        int // of the filter, -1 if unknown
	Bulk         []Action
	AsOf         string
	Partial      bool // the search has stopped before its end
}

type tab struct {
	State string
	Count int // -1 if unknown
	Link  string
}

func (q *request) list() error {
	v := q.r.URL.Query()
	if err := only(v, append(filterParams, noticeParams...)...); err != nil {
		return err
	}
	f, err := q.parseFilter(v)
	if err != nil {
		return err
	}
	at, err := q.s.now(q.ctx)
	if err != nil {
		return err
	}
	p, err := q.s.fetch(q.ctx, f, at)
	if err != nil {
		return err
	}
	l := list{Filter: f, Rows: p.rows, Total: -1, AsOf: at.Format(time.RFC3339Nano)}
	link := func(c *cursor) string {
		if c == nil {
			return ""
		}
		g := f
		g.Cursor = c
		return g.url()
	}
	l.Newer, l.Older = link(p.newer), link(p.older)
	l.Partial = len(p.rows) < f.Limit && p.older != nil
	counts, _, _ := cache(q.ctx, q.s, "counts", func() (map[string]int, error) {
		m := map[string]int{}
		for _, state := range states[1:] {
			n, err := q.s.count(q.ctx, filter{State: state}, at)
			if err != nil {
				return nil, err
			}
			m[state] = n
		}
		return m, nil
	})
	for _, state := range states {
		n, ok := counts[state]
		if !ok {
			n = -1
		}
		l.Tabs = append(l.Tabs, tab{state, n, f.with(state).url()})
	}
	l.Functions = q.s.limits().Funcs
	for _, a := range bulkOf(f.State) {
		if q.can(a) {
			l.Bulk = append(l.Bulk, a)
		}
	}
	switch {
	case len(l.Bulk) == 0 || f.Args != "" && q.s.opts.Redact != nil:
	case f.Cursor == nil && p.older == nil:
		l.Total = len(p.rows)
	default:
		if l.Total, err = q.s.count(q.ctx, f, at); err != nil {
			l.Total = -1 // the list is there all the same
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
	return q.render(http.StatusOK, "list", stateNames[f.State]+" tasks", l)
}

// bulkOf are the actions that make sense for all tasks of a state.
func bulkOf(state string) []Action {
	switch state {
	case pending:
		return []Action{Reschedule, Cancel}
	case scheduled, parked:
		return []Action{RunNow, Reschedule, Cancel}
	case failed:
		return []Action{Rerun, Discard}
	case done, cancelled:
		return []Action{Rerun}
	}
	return nil
}

type detail struct {
	Task    *outbox.TaskModel
	Past    *outbox.HistoryModel
	ID      string
	Func    string
	Queue   string
	Key     *string
	Version int64
	State   string
	Common  outbox.TaskModel // what both have
	Args    string
	Editor  string // what the field for other arguments starts with
	Result  string
	Errors  outbox.Attempts
	Process *process
	Audit   []outbox.AuditModel
	Actions []Action
	Known   bool // some live process runs the function
	Limits  struct{ Success, Error string }
}

func (q *request) detail(id string) error {
	if err := only(q.r.URL.Query(), noticeParams...); err != nil {
		return err
	}
	at, err := q.s.now(q.ctx)
	if err != nil {
		return err
	}
	d, err := q.load(id, at)
	if err != nil {
		return err
	}
	return q.render(http.StatusOK, "detail", d.Func, d)
}

// load reads a task with all that belongs to it, as far as the sender may see it.
func (q *request) load(id string, at time.Time) (d detail, err error) {
	task, past, err := outbox.Lookup(q.s.conn(q.ctx), id)
	if err != nil {
		return d, err
	}
	d = detail{Task: task, Past: past, ID: id}
	if task != nil {
		d.Common = *task
		d.State = string(task.State)
		if task.State == outbox.StatePending && task.RunAt.After(at) {
			d.State = scheduled
		}
	} else {
		h := past
		d.Common = outbox.TaskModel{ID: h.ID, Func: h.Func, Args: h.Args, Key: h.Key, Queue: h.Queue, Priority: h.Priority, RunAt: h.RunAt,
			Attempt: h.Attempt, Uncounted: h.Uncounted, Crashes: h.Crashes, MaxAttempts: h.MaxAttempts, TimeoutMS: h.TimeoutMS,
			Version: h.Version, ProcessID: h.ProcessID, RerunOf: h.RerunOf, Errors: h.Errors, Meta: h.Meta, CreatedAt: h.CreatedAt, StartedAt: h.StartedAt}
		d.State = stateOf(h.Status, h.RerunID != nil)
		if len(h.Result) > 0 && q.can(ViewArgs) {
			d.Result = pretty(q.s.redact(h.Func, h.Result))
		}
	}
	c := d.Common
	d.Func, d.Queue, d.Key, d.Version, d.Errors = c.Func, c.Queue, c.Key, c.Version, c.Errors
	if q.can(ViewArgs) {
		shown := q.s.redact(c.Func, c.Args)
		d.Args = pretty(shown)
		if bytes.Equal(shown, c.Args) {
			d.Editor = d.Args
		}
	}
	for _, a := range actionsOf(d) {
		if q.can(a) {
			d.Actions = append(d.Actions, a)
		}
	}
	processes, err := q.s.listProcesses(q.ctx, at)
	if err != nil {
		return d, err
	}
	for i, p := range processes {
		if c.ProcessID != nil && p.ID == *c.ProcessID {
			d.Process = &processes[i]
		}
		d.Known = d.Known || !p.Silent && slices.Contains(p.Functions, c.Func)
	}
	ids := []string{id}
	if c.RerunOf != nil {
		ids = append(ids, *c.RerunOf)
	}
	err = q.s.read(q.ctx).Where("task_id IN ?", ids).Order("id DESC").Limit(50).Find(&d.Audit).Error
	return d, err
}

// actionsOf are those that a task's state allows.
func actionsOf(d detail) []Action {
	switch {
	case d.Task != nil && d.Task.State == outbox.StateRunning:
		return nil
	case d.Task != nil:
		list := []Action{RunNow, Reschedule, Cancel}
		if d.State == pending {
			list = list[1:] // it is due already
		}
		return list
	case d.Past.RerunID != nil:
		return nil
	case d.Past.Status == outbox.StatusError:
		return []Action{Rerun, Discard}
	}
	return []Action{Rerun}
}

func stateOf(status outbox.Status, again bool) string {
	switch status {
	case outbox.StatusError:
		if again {
			return handled
		}
		return failed
	case outbox.StatusCancelled:
		return cancelled
	}
	return done
}

// pretty indents JSON, digits as they are; what is no JSON stays as it is.
func pretty(raw []byte) string {
	var out bytes.Buffer
	if json.Indent(&out, raw, "", "  ") != nil {
		return string(raw)
	}
	return out.String()
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
	at, err := q.s.now(q.ctx)
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
	at, err := q.s.now(q.ctx)
	if err != nil {
		return nil, err
	}
	return q.s.listProcesses(q.ctx, at)
}

type auditPage struct {
	Rows                []outbox.AuditModel
	Actor, Action, Task string
	Actions             []Action
	Older               string
}

func (q *request) audit() error {
	p, err := q.auditRows()
	if err != nil {
		return err
	}
	return q.render(http.StatusOK, "audit", "Audit", p)
}

func (q *request) auditRows() (p auditPage, err error) {
	v := q.r.URL.Query()
	if err := only(v, "actor", "action", "task", "before"); err != nil {
		return p, err
	}
	p = auditPage{Actor: strings.TrimSpace(v.Get("actor")), Action: v.Get("action"), Task: strings.TrimSpace(v.Get("task")), Actions: changes}
	if p.Action != "" && !slices.Contains(changes, Action(p.Action)) {
		return p, fail(http.StatusBadRequest, "action must be one of: %s.", accepted(changes))
	}
	tx := q.s.read(q.ctx).Order("id DESC").Limit(defaultLimit + 1)
	for column, text := range map[string]string{"actor = ?": p.Actor, "action = ?": p.Action, "task_id = ?": p.Task, "id < ?": v.Get("before")} {
		if text == "" {
			continue
		}
		if len(text) > maxParam || clean(text) != text {
			return p, fail(http.StatusBadRequest, "A parameter must be a text of at most %d bytes.", maxParam)
		}
		tx = tx.Where(column, text)
	}
	if err := tx.Find(&p.Rows).Error; err != nil {
		return p, err
	}
	if len(p.Rows) > defaultLimit {
		p.Rows = p.Rows[:defaultLimit]
		v.Set("before", p.Rows[defaultLimit-1].ID)
		p.Older = "audit?" + v.Encode()
	}
	return p, nil
}
