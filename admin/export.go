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

// export streams what a list shows, all of its pages, up to maxCount tasks, as CSV or as one JSON document a line.
func (q *request) export() error {
	v := q.r.URL.Query()
	if err := only(v, append(slices.Clone(filterParams), "format")...); err != nil {
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
	at, err := q.s.now(ctx)
	if err != nil {
		return err
	}
	f.Limit, f.Cursor, f.asOf = maxLimit, nil, at
	p, err := q.s.fetch(ctx, f, at)
	if err != nil {
		return err
	}
	args := q.can(ViewArgs)
	q.w.Header().Set("Content-Disposition", `attachment; filename="tasks.`+format+`"`)
	var write func(row) error
	if format == "csv" {
		q.w.Header().Set("Content-Type", "text/csv; charset=utf-8")
		out := csv.NewWriter(q.w)
		defer out.Flush()
		if err := out.Write(exportColumns); err != nil {
			return nil
		}
		write = func(r row) error { return out.Write(cells(r, at, q.shown(r, args))) }
	} else {
		q.w.Header().Set("Content-Type", "application/x-ndjson")
		out := json.NewEncoder(q.w)
		write = func(r row) error {
			return out.Encode(struct {
				taskJSON
				Args json.RawMessage `json:"args,omitempty"`
			}{r.json(at), document(q.shown(r, args))})
		}
	}
	for n := 0; ; {
		for _, r := range p.rows {
			if n++; n > maxCount || write(r) != nil {
				return nil
			}
		}
		if f.Cursor = p.older; f.Cursor == nil {
			return nil
		}
		if p, err = q.s.fetch(ctx, f, at); err != nil {
			q.abort(err)
		}
	}
}

// shown is what the sender may see of a row's arguments.
func (q *request) shown(r row, may bool) string {
	if !may {
		return ""
	}
	raw, err := q.s.args(q.ctx, r)
	if err != nil {
		q.abort(err)
	}
	return string(q.s.redact(r.Func, raw))
}

// abort ends an export whose beginning has been sent: a connection that breaks off says that the rest is missing.
func (q *request) abort(err error) {
	q.s.opts.Logger.Error("outbox admin: export", "err", err)
	panic(http.ErrAbortHandler)
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

// harmless keeps a spreadsheet from taking a text for a formula.
func harmless(s string) string {
	if s != "" && strings.ContainsRune("=+-@\t\r\n", rune(s[0])) || strings.HasPrefix(s, "＝") || strings.HasPrefix(s, "＋") ||
		strings.HasPrefix(s, "－") || strings.HasPrefix(s, "＠") {
		return "'" + s
	}
	return s
}
