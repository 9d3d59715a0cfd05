package admin

import (
	"bytes"
	"encoding/json"
	"io"
	"mime"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/gorm-outbox/outbox"
)

// taskJSON is a task of either table, as lists and exports return it.
type taskJSON struct {
	ID          string     `json:"id"`
	State       string     `json:"state"`
	Func        string     `json:"func"`
	Key         *string    `json:"key,omitempty"`
	Queue       string     `json:"queue"`
	Priority    int        `json:"priority"`
	RunAt       time.Time  `json:"run_at"`
	Attempt     int        `json:"attempt"`
	MaxAttempts int        `json:"max_attempts"`
	Version     int64      `json:"version"`
	CreatedAt   time.Time  `json:"created_at"`
	StartedAt   *time.Time `json:"started_at,omitempty"`
	ProcessID   *string    `json:"process_id,omitempty"` // of the current or the last run
	FinishedAt  *time.Time `json:"finished_at,omitempty"`
	Reason      string     `json:"reason,omitempty"`
	Error       string     `json:"error,omitempty"` // its first part
	RerunID     *string    `json:"rerun_id,omitempty"`
}

// state is the state of a row, as a person would say it.
func (r row) state(at time.Time) string {
	switch {
	case r.FinishedAt != nil:
		return stateOf(r.Status, r.RerunID != nil)
	case r.State == outbox.StatePending && r.RunAt.After(at):
		return scheduled
	}
	return string(r.State)
}

func (r row) json(at time.Time) taskJSON {
	t := taskJSON{ID: r.ID, State: r.state(at), Func: r.Func, Key: r.Key, Queue: r.Queue, Priority: r.Priority, RunAt: r.RunAt.UTC(),
		Attempt: r.Attempt, MaxAttempts: r.MaxAttempts, Version: r.Version, CreatedAt: r.CreatedAt.UTC(), ProcessID: r.ProcessID, Reason: string(r.Reason), RerunID: r.RerunID}
	if r.StartedAt != nil {
		t.StartedAt = utc(*r.StartedAt)
	}
	if r.FinishedAt != nil {
		t.FinishedAt = utc(*r.FinishedAt)
	}
	if r.Error != nil {
		t.Error = *r.Error
	}
	return t
}

// json answers with a document. Parts of the document that only tell the time of the request do not
// count for its tag.
func (q *request) json(v any, times ...string) error {
	var out bytes.Buffer
	if err := json.NewEncoder(&out).Encode(v); err != nil { // escapes characters of HTML
		return err
	}
	if !q.unchanged(out.Bytes(), times...) {
		q.w.Header().Set("Content-Type", "application/json")
		q.w.Write(out.Bytes())
	}
	return nil
}

type listJSON struct {
	Data       any    `json:"data"`
	NextCursor string `json:"next_cursor,omitempty"`
	AsOf       string `json:"as_of,omitempty"`
	Count      *int   `json:"count,omitempty"` // a number above 10,000 means "more than 10,000"
	Shown      string `json:"shown,omitempty"`
}

func (q *request) apiOverview() error {
	span, err := q.span()
	if err != nil {
		return err
	}
	f, _, err := cache(q.ctx, q.s, "overview "+span, func() (figures, error) { return q.s.figures(q.ctx, span) })
	if err != nil {
		return err
	}
	return q.json(f)
}

func (q *request) apiList() error {
	v := q.r.URL.Query()
	if err := only(v, filterParams...); err != nil {
		return err
	}
	f, p, at, err := q.find(v)
	if err != nil {
		return err
	}
	tasks := make([]taskJSON, len(p.rows))
	for i, r := range p.rows {
		tasks[i] = r.json(at)
	}
	out := listJSON{Data: tasks}
	if p.older != nil {
		out.NextCursor = p.older.String()
	}
	// A change of all tasks that match needs these values.
	if f.Cursor == nil && len(bulkOf(f.State)) > 0 && (f.Args == "" || q.s.opts.Redact == nil) {
		set, n := sealRows(p.rows), len(p.rows)
		if p.older != nil {
			if set, n, err = q.s.seen(q.ctx, f, at); err != nil {
				q.problem(err) // the list is returned anyway
			}
		}
		if err == nil {
			out.AsOf, out.Count, out.Shown = at.Format(time.RFC3339Nano), &n, set
		}
	}
	return q.json(out, `"as_of":"`+out.AsOf+`"`)
}

func (q *request) apiDetail(id string) error {
	if err := only(q.r.URL.Query()); err != nil {
		return err
	}
	d, err := q.load(id)
	if err != nil {
		return err
	}
	c := d.Common
	t := row{ID: c.ID, Func: c.Func, Key: c.Key, Queue: c.Queue, Priority: c.Priority, RunAt: c.RunAt, State: c.State, Attempt: c.Attempt,
		MaxAttempts: c.MaxAttempts, Version: c.Version, CreatedAt: c.CreatedAt, StartedAt: c.StartedAt, ProcessID: c.ProcessID}
	if h := d.Past; h != nil {
		t.Status, t.Reason, t.Error, t.FinishedAt, t.RerunID = h.Status, h.Reason, h.Error, &h.FinishedAt, h.RerunID
	}
	out := struct {
		taskJSON
		RerunOf *string         `json:"rerun_of,omitempty"`
		Args    json.RawMessage `json:"args,omitempty"`
		Result  json.RawMessage `json:"result,omitempty"`
		Errors  outbox.Attempts `json:"errors"`
		Process *process        `json:"process,omitempty"`
		Actions []Action        `json:"actions"`
		Audit   []auditJSON     `json:"audit"`
	}{taskJSON: t.json(d.at), RerunOf: c.RerunOf, Args: document(d.Args), Result: document(d.Result), Errors: d.Errors,
		Process: d.Process, Actions: d.Actions, Audit: auditOf(d.Audit)}
	return q.json(out)
}

// document returns JSON as it is. Output of a redactor that is not JSON becomes a text.
func document(text string) json.RawMessage {
	if text == "" || json.Valid([]byte(text)) {
		return json.RawMessage(text)
	}
	b, _ := json.Marshal(text)
	return b
}

func (q *request) apiFunctions() error {
	if err := only(q.r.URL.Query()); err != nil {
		return err
	}
	list, _, err := cache(q.ctx, q.s, "functions", q.allFunctions)
	if err != nil {
		return err
	}
	return q.json(listJSON{Data: list})
}

func (q *request) apiProcesses() error {
	list, err := q.allProcesses()
	if err != nil {
		return err
	}
	return q.json(listJSON{Data: list})
}

// body reads a JSON document of exactly this shape.
func (q *request) body(v any) error {
	kind, _, err := mime.ParseMediaType(q.r.Header.Get("Content-Type"))
	if err != nil || kind != "application/json" {
		return fail(http.StatusUnsupportedMediaType, "The body must be of type application/json.")
	}
	dec := json.NewDecoder(q.r.Body)
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		var big *http.MaxBytesError
		if asMax(err, &big) {
			return err
		}
		return fail(http.StatusBadRequest, "The body is not the JSON that is expected: %s.", shorten(err.Error(), 200))
	}
	if _, err := dec.Token(); err != io.EOF {
		return fail(http.StatusBadRequest, "The body has more than one document.")
	}
	return nil
}

func (q *request) apiChange(id string, action Action) error {
	if err := q.need(action); err != nil {
		return err
	}
	var in struct {
		Version *int64          `json:"version"`
		At      string          `json:"at"`
		Args    json.RawMessage `json:"args"`
		Reason  string          `json:"reason"`
	}
	if err := q.body(&in); err != nil {
		return err
	}
	c := change{action: action, id: id, reason: strings.TrimSpace(in.Reason)}
	if in.Version == nil {
		return fail(http.StatusBadRequest, "version is missing: give that of the task as you know it.")
	}
	c.version = *in.Version
	if len(in.Args) > 0 && !bytes.Equal(in.Args, []byte("null")) {
		c.args = in.Args
	}
	if action == Reschedule || in.At != "" {
		var err error
		if c.at, err = parseTime(in.At); err != nil || action != Reschedule {
			return fail(http.StatusBadRequest, "at must be a time such as 2006-01-02T15:04:05Z, and belongs to reschedule.")
		}
	}
	created, err := q.change(c)
	if err != nil {
		return err
	}
	return q.json(struct {
		ID      string `json:"id"`
		RerunID string `json:"rerun_id,omitempty"`
	}{id, created})
}

func (q *request) apiBulk() error {
	var in struct {
		Action Action `json:"action"`
		Tasks  []struct {
			ID      string `json:"id"`
			Version *int64 `json:"version"`
		} `json:"tasks"`
		Filter map[string]string `json:"filter"`
		AsOf   time.Time         `json:"as_of"`
		Count  int               `json:"count"`
		Shown  string            `json:"shown"`
		At     string            `json:"at"`
		Reason string            `json:"reason"`
	}
	if err := q.need(View); err != nil {
		return err
	}
	if err := q.body(&in); err != nil {
		return err
	}
	if !slices.Contains(bulkActions, in.Action) {
		return fail(http.StatusBadRequest, "action must be one of: %s.", accepted(bulkActions))
	}
	if err := q.need(in.Action); err != nil {
		return err
	}
	b := bulk{action: in.Action, reason: strings.TrimSpace(in.Reason), asOf: in.AsOf, count: in.Count}
	var err error
	if b.at, err = startOf(b.action, in.At); err != nil {
		return err
	}
	if err := checkReason(b.reason); err != nil {
		return err
	}
	switch {
	case in.At != "" && in.Action != Reschedule:
		return fail(http.StatusBadRequest, "at belongs to reschedule.")
	case (in.Filter == nil) == (len(in.Tasks) == 0):
		return fail(http.StatusBadRequest, "Give either tasks, or filter with as_of and count.")
	case len(in.Tasks) > maxLimit:
		return fail(http.StatusBadRequest, "At most %d tasks.", maxLimit)
	case in.Filter == nil && in.Shown != "":
		return fail(http.StatusBadRequest, "shown belongs to filter.")
	case in.Filter != nil:
		if in.AsOf.IsZero() || !storable(in.AsOf) || in.Count < 1 {
			return fail(http.StatusBadRequest, "With a filter come as_of and count: when what was shown, and how many it was.")
		}
		v := map[string][]string{}
		for name, value := range in.Filter {
			v[name] = []string{value}
		}
		if err := only(v, findParams...); err != nil {
			return err
		}
		f, err := q.parseFilter(v)
		if err != nil {
			return err
		}
		if b.shown, err = parseShown(in.Shown); err != nil {
			return err
		}
		b.filter = &f
	}
	for _, t := range in.Tasks {
		if t.Version == nil {
			return fail(http.StatusBadRequest, "A task has no version: give that of each as you know it.")
		}
		b.picked = append(b.picked, pick{t.ID, *t.Version})
	}
	res, err := q.bulk(b)
	if err != nil {
		return err
	}
	return q.json(res)
}
