package admin

import (
	"context"
	"encoding/csv"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"time"
)

const exportTimeout = time.Minute

// exporter writes an export in a format. An export that ends with last is incomplete.
type exporter interface {
	row(r row, args string) error
	last(why string)
}

// export streams the tasks of all pages of a list, up to maxCount tasks, as CSV or as one JSON
// document a line.
func (q *request) export() error {
	v := q.r.URL.Query()
	if err := only(v, append(slices.Clone(findParams), "format")...); err != nil {
		return err
	}
	format := v.Get("format")
	if format != "csv" && format != "ndjson" {
		return fail(http.StatusBadRequest, "format must be one of: csv, ndjson.")
	}
	f, err := q.parseFilter(v)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(q.r.Context(), exportTimeout)
	defer cancel()
	q.ctx, q.limit = ctx, exportTimeout
	at, err := q.now()
	if err != nil {
		return err
	}
	f.Limit, f.Cursor, f.asOf = maxLimit, nil, at
	first, err := q.s.fetch(ctx, f, at)
	if err != nil {
		return err
	}
	q.w.Header().Set("Content-Disposition", `attachment; filename="tasks.`+format+`"`)
	var out exporter
	if format == "csv" {
		q.w.Header().Set("Content-Type", "text/csv; charset=utf-8")
		w := csv.NewWriter(q.w)
		defer w.Flush()
		w.Write(exportColumns) // the rows return its error again
		out = csvExport{w, at}
	} else {
		q.w.Header().Set("Content-Type", "application/x-ndjson")
		out = jsonExport{json.NewEncoder(q.w), at}
	}
	if err := q.stream(out, f, first, at); err != nil {
		q.breakOff(out, err)
	}
	return nil
}

// stream writes a first page and the pages that follow.
func (q *request) stream(out exporter, f filter, p page, at time.Time) (err error) {
	args := q.can(ViewArgs)
	for n := 0; ; {
		for _, r := range p.rows {
			if n++; n > maxCount {
				break
			}
			text := ""
			if args { // as far as the sender may see them
				raw, err := q.s.args(q.ctx, r)
				if err != nil {
					return err
				}
				text = string(q.s.redact(r.Func, raw))
			}
			if err := out.row(r, text); err != nil {
				return nil // the client is gone
			}
		}
		switch f.Cursor = p.older; {
		case f.Cursor == nil && n <= maxCount:
			return nil
		case n >= maxCount:
			out.last("The export ends after " + num(maxCount) + " tasks, the rest is missing: narrow the filter.")
			return nil
		}
		if p, err = q.s.fetch(q.ctx, f, at); err != nil {
			return err
		}
	}
}

// breakOff ends an export whose beginning has been sent. The last record says that the rest is
// missing. Where possible, the connection also closes before the end of the response. breakOff must
// not panic with http.ErrAbortHandler, because not every server recovers.
func (q *request) breakOff(out exporter, err error) {
	if q.r.Context().Err() != nil {
		return // the client is gone
	}
	p := q.problem(err)
	out.last("The export stopped here, the rest is missing: " + p.Detail)
	http.NewResponseController(q.w).Flush()
	if q.r.ProtoMajor != 1 {
		return
	}
	for w := q.w; w != nil; { // some writers refuse, but wrap a writer that accepts
		if h, ok := w.(http.Hijacker); ok {
			if conn, _, err := h.Hijack(); err == nil {
				conn.Close()
				return
			}
		}
		u, ok := w.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			return
		}
		w = u.Unwrap()
	}
}

type jsonExport struct {
	*json.Encoder
	at time.Time
}

func (e jsonExport) row(r row, args string) error {
	return e.Encode(struct {
		taskJSON
		Args json.RawMessage `json:"args,omitempty"`
	}{r.json(e.at), document(args)})
}

func (e jsonExport) last(why string) {
	e.Encode(struct {
		Error string `json:"error"`
	}{why})
}

type csvExport struct {
	*csv.Writer
	at time.Time
}

func (e csvExport) row(r row, args string) error { return e.Write(cells(r, e.at, args)) }

func (e csvExport) last(why string) {
	cells := make([]string, len(exportColumns))
	cells[0] = why
	e.Write(cells)
	e.Flush()
}

var exportColumns = []string{"id", "state", "func", "key", "queue", "priority", "run_at", "attempt", "max_attempts", "version",
	"created_at", "started_at", "finished_at", "reason", "error", "rerun_id", "args"}

func cells(r row, at time.Time, args string) []string {
	t := r.json(at)
	text := func(s *string) string {
		if s == nil {
			return ""
		}
		return *s
	}
	when := func(t *time.Time) string {
		if t == nil {
			return ""
		}
		return t.Format(time.RFC3339Nano)
	}
	list := []string{t.ID, t.State, t.Func, text(t.Key), t.Queue, itoa(t.Priority), when(&t.RunAt), itoa(t.Attempt), itoa(t.MaxAttempts),
		itoa(int(t.Version)), when(&t.CreatedAt), when(t.StartedAt), when(t.FinishedAt), t.Reason, t.Error, text(t.RerunID), args}
	for i, s := range list {
		list[i] = harmless(s)
	}
	return list
}

// harmless keeps a spreadsheet from interpreting a text as a formula.
func harmless(s string) string {
	if s != "" && strings.ContainsRune("=+-@\t\r\n", rune(s[0])) || strings.HasPrefix(s, "＝") || strings.HasPrefix(s, "＋") ||
		strings.HasPrefix(s, "－") || strings.HasPrefix(s, "＠") {
		return "'" + s
	}
	return s
}
