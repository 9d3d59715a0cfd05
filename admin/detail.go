package admin

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/gorm-outbox/outbox"
)

type detail struct {
	at      time.Time // by the database's clock
	Task    *outbox.TaskModel
	Past    *outbox.HistoryModel
	ID      string
	Func    string
	Queue   string
	Key     *string
	Version int64
	State   string
	Common  outbox.TaskModel // the fields that Task and Past have in common
	Args    string
	Partly  bool   // the redactor has changed the arguments that are shown
	Editor  string // the first value of the field for edited arguments
	Refused string // why a form was refused
	typed   typed  // and the values in the form
	List    filter // the list to go back to
	Origin  string // the same, for forms, if the task was opened from the list
	Result  string
	Errors  outbox.Attempts
	Process *process
	Audit   []outbox.AuditModel
	Actions []Action
	Known   bool // some live process runs the function
}

func (q *request) detail(id string) error {
	v := q.r.URL.Query()
	if err := only(v, append(slices.Clone(noticeParams), "list")...); err != nil {
		return err
	}
	if err := q.noticed(v); err != nil {
		return err
	}
	if err := q.from(v.Get("list")); err != nil {
		return err
	}
	d, err := q.load(id)
	if err != nil {
		return err
	}
	return q.render(http.StatusOK, "detail", d.title(), d)
}

// typed has the values that the sender has typed into a form of a task's page.
type typed struct {
	action     Action // or EditArgs, a re-run's other form
	at, reason string
}

// refused shows the task again with a refused form, so that the sender need not type the values
// again.
func (q *request) refused(id string, form typed, args []byte, p *problem) error {
	d, err := q.load(id)
	if err != nil {
		return err
	}
	d.typed, d.Refused = form, p.Detail
	if args != nil {
		d.typed.action, d.Editor = EditArgs, string(args)
	}
	return q.render(p.Status, "detail", d.title(), d)
}

// from keeps the list from which a task was opened.
func (q *request) from(text string) error {
	if text == "" {
		return nil
	}
	v, err := url.ParseQuery(text)
	if err == nil {
		err = only(v, filterParams...)
	}
	if err != nil {
		return fail(http.StatusBadRequest, "list must be the filter of a list.")
	}
	f, err := q.parseFilter(v)
	q.origin = &f
	return err
}

// Back is the link to the list.
func (d detail) Back() string { return d.List.url() }

// Head is the beginning of the error. Stack is the rest of a long error, such as the stack trace of
// a panic.
func (d detail) Head() string  { head, _ := fold(d.Past.Error); return head }
func (d detail) Stack() string { _, rest := fold(d.Past.Error); return rest }

// fold splits a text of more than twelve lines after the eighth.
func fold(text *string) (head, rest string) {
	if text == nil {
		return "", ""
	}
	lines := strings.SplitAfter(*text, "\n")
	if len(lines) <= 12 {
		return *text, ""
	}
	return strings.Join(lines[:8], ""), strings.Join(lines[8:], "")
}

// Open reports whether the form of an action is the refused form.
func (d detail) Open(a Action) bool { return d.typed.action == a }

// Reason is the reason that was typed into the form of an action.
func (d detail) Reason(a Action) string {
	if d.Open(a) {
		return d.typed.reason
	}
	return ""
}

// Start is the value of the field for a new start time.
func (d detail) Start() string {
	if at, err := parseTime(d.typed.at); err == nil && d.Open(Reschedule) {
		return fieldTime(at)
	}
	return d.Common.RunAt.UTC().Format("2006-01-02T15:04")
}

// title distinguishes a task from other tasks of its function.
func (d detail) title() string {
	return stateNames[d.State] + ": " + shorten(d.Func, 80) + " " + d.ID[max(0, len(d.ID)-8):]
}

// load reads a task and everything that belongs to it, as far as the sender may see it.
func (q *request) load(id string) (d detail, err error) {
	at, err := q.now()
	if err != nil {
		return d, err
	}
	task, past, err := outbox.Lookup(q.s.conn(q.ctx), id)
	if err != nil {
		return d, err
	}
	d = detail{Task: task, Past: past, ID: id, at: at}
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
		d.Partly = !bytes.Equal(shown, c.Args)
		if !d.Partly {
			d.Editor = d.Args
		}
	}
	if d.Errors == nil {
		d.Errors = outbox.Attempts{}
	}
	d.Actions = []Action{}
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
	d.List = filter{State: d.State, Limit: defaultLimit}
	if q.origin != nil {
		d.List, d.Origin = *q.origin, q.origin.values().Encode()
	}
	ids := []string{id}
	if c.RerunOf != nil {
		ids = append(ids, *c.RerunOf)
	}
	err = q.s.read(q.ctx).Where("task_id IN ?", ids).Order("id DESC").Limit(50).Find(&d.Audit).Error
	return d, err
}

// actionsOf returns the actions that a task's state allows.
func actionsOf(d detail) []Action {
	switch {
	case d.Task != nil && d.Task.State == outbox.StateRunning:
		return nil
	case d.Task != nil:
		list := []Action{RunNow, Reschedule, Cancel}
		switch d.State {
		case pending:
			list = list[1:] // it is due already
		case parked: // until a process runs the function, little else can be done
			list = []Action{Cancel, RunNow, Reschedule}
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

// pretty indents JSON and keeps its digits. A text that is not JSON stays as it is.
func pretty(raw []byte) string {
	var out bytes.Buffer
	if json.Indent(&out, raw, "", "  ") != nil {
		return string(raw)
	}
	return out.String()
}
