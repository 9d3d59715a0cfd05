package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dialect"
)

// problem is an error that the sender may see, in the form of RFC 9457.
type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`
	Now    *now   `json:"current,omitempty"` // the task's present state
	cause  error
}

// now is the present state of a task.
type now struct {
	State   string `json:"state"`
	Version int64  `json:"version"`
}

func (p *problem) Error() string { return p.Title + ": " + p.Detail }

func (p *problem) Unwrap() error { return p.cause }

func fail(status int, format string, args ...any) *problem {
	return &problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: fmt.Sprintf(format, args...)}
}

// explain returns what the sender may see of an error. logged says that the error itself belongs in
// the log.
func (s *site) explain(err error, limit time.Duration) (p *problem, logged bool) {
	var big *http.MaxBytesError
	switch {
	case errors.As(err, &p):
		return p, false
	case errors.As(err, &big):
		return fail(http.StatusRequestEntityTooLarge, "A request may have %d bytes.", big.Limit), false
	case errors.Is(err, outbox.ErrNotFound):
		l := s.inside()
		return fail(http.StatusNotFound, "There is no such task (any more). History keeps successes and cancellations for %s, errors for %s.",
			retention(l.RetainSuccess), retention(l.RetainErrors)), false
	case errors.Is(err, outbox.ErrRunning):
		return fail(http.StatusConflict, "The task is running, so it can be neither cancelled nor changed."), false
	case errors.Is(err, outbox.ErrDuplicateKey):
		return fail(http.StatusConflict, "Another unfinished task holds the same key."), false
	case errors.Is(err, outbox.ErrConflict):
		return fail(http.StatusConflict, "The task has changed, or has been re-run already."), false
	case errors.Is(err, outbox.ErrUnknownFunc):
		return fail(http.StatusConflict, "The process that serves these pages has not registered the task's function, so it cannot create tasks of it."), false
	case errors.Is(err, outbox.ErrBadArgs):
		return fail(http.StatusUnprocessableEntity, "The arguments do not fit the function."), false
	case errors.Is(err, outbox.ErrBadOption):
		return fail(http.StatusUnprocessableEntity, "The start time cannot be stored."), false
	case errors.Is(err, context.DeadlineExceeded):
		return fail(http.StatusServiceUnavailable, "The database took longer than %s. Narrow the search: by state, time, key or id.", limit), true
	}
	switch dialect.Classify(err) {
	case dialect.Busy, dialect.Retry:
		return fail(http.StatusServiceUnavailable, "The database is busy. Try again."), true
	case dialect.Missing:
		return fail(http.StatusServiceUnavailable, "The outbox's tables are missing or of another version: call Migrate."), true
	}
	return fail(http.StatusInternalServerError, "It could not be done. The server's log says why."), true
}

func asMax(err error, big **http.MaxBytesError) bool { return errors.As(err, big) }

// errorPage is an error with a link back.
type errorPage struct {
	*problem
	Back string
}

// problem returns what the sender may see of an error, and logs the error where that hides
// something.
func (q *request) problem(err error) *problem {
	if q.ctx != nil && q.ctx.Err() != nil && errors.Is(q.ctx.Err(), context.DeadlineExceeded) {
		var p *problem
		if !errors.As(err, &p) {
			err = q.ctx.Err() // each driver has its own error for this
		}
	}
	p, logged := q.s.explain(err, q.limit)
	if logged && q.r.Context().Err() == nil { // the client is still connected
		q.s.opts.Logger.Error("outbox admin: request failed", "status", p.Status, "page", q.page, "err", err)
	}
	return p
}

// refuse answers a request with an error: a page, or RFC 9457's JSON under api/.
func (q *request) refuse(err error) {
	if errors.Is(err, context.Canceled) && q.r.Context().Err() != nil {
		return // the client is gone
	}
	p := q.problem(err)
	if p.Status == http.StatusServiceUnavailable {
		q.w.Header().Set("Retry-After", "5")
	}
	if q.api {
		q.w.Header().Set("Content-Type", "application/problem+json")
		q.w.WriteHeader(p.Status)
		json.NewEncoder(q.w).Encode(p)
		return
	}
	e := errorPage{problem: p, Back: q.back}
	if p.Status == http.StatusNotFound {
		e.Back = ""
	}
	q.render(p.Status, "error", p.Title, e)
}
