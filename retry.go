package outbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/gorm-outbox/outbox/internal/dialect"
	"github.com/gorm-outbox/outbox/internal/text"
)

// What becomes of a task after a run: pure functions of the task, as it was claimed, and of how the run ended.

// maxCrashes of repeatable runs: a task that kills its process again and again must not do so for ever.
const maxCrashes = 3

// maxMisfits bounds how often a task goes back because it does not fit the process that has claimed it: with the default
// backoff between them that takes over an hour, in which a deploy is over.
const maxMisfits = 12

// A task keeps its first failed attempt and the latest of the others, each with a shortened text.
const (
	maxKeptAttempts = 20
	maxKeptError    = 4 << 10
)

// DefaultBackoff doubles from one second to an hour, each a quarter more or less at random.
func DefaultBackoff(attempt int) time.Duration {
	d := time.Hour
	if attempt < 13 {
		d = min(d, time.Second<<max(0, attempt-1))
	}
	return d - d/4 + rand.N(d/2)
}

// Permanent wraps an error so that the task ends as error at once, whatever attempts are left. Permanent(nil) is nil.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return &permanentError{err}
}

type permanentError struct{ err error }

func (e *permanentError) Error() string { return e.err.Error() }
func (e *permanentError) Unwrap() error { return e.err }

// Snooze is what a handler returns to be run again after d, by the database's clock, without having failed: the run does
// not count as an attempt. A transactional handler's writes are rolled back. A negative d is zero. Hooks.OnFinish is told
// ReasonSnoozed, without an error.
func Snooze(d time.Duration) error { return &snoozeError{max(0, d)} }

type snoozeError struct{ d time.Duration }

func (e *snoozeError) Error() string { return fmt.Sprintf("snooze for %v", e.d) }

// ending is how a run ended.
type ending struct {
	reason   Reason // ReasonNone means that the handler returned nil
	err      error
	text     string // the error's text, as it is stored
	result   JSON
	duration time.Duration
	delay    time.Duration // with giveBack
	giveBack bool          // the run did nothing that lasts and does not count
	final    bool          // no further attempt, whatever is left: what the run did is unknown, or it cannot succeed

	undone string // the step of a transaction from which the database kept the run, with err; nothing lasts of the run
	passes bool   // with undone: the handler was not called, and the error is one that passes
	away   bool   // with undone: the database could not be reached meanwhile

	crash     bool // counts as an interrupted run of a repeatable handler does
	elsewhere bool // another process may be able to run the task
}

// verdict is one of two: the task moves to history, or back to pending.
type verdict struct {
	outcome *dialect.Outcome
	requeue *dialect.Requeued
	next    time.Duration // with requeue
}

// decide turns an ending into what is written.
func decide(t *TaskModel, e ending, backoff func(int) time.Duration) verdict {
	if e.giveBack {
		return requeue(t, e.delay, 1, 0, nil)
	}
	if n := misfits(t); e.elsewhere && n < maxMisfits {
		return requeue(t, DefaultBackoff(n+1), 1, 0, failed(t, e))
	}
	if e.reason == ReasonFailed || e.reason == ReasonSnoozed {
		var snooze *snoozeError
		if errors.As(e.err, &snooze) {
			return requeue(t, snooze.d, 1, 0, nil)
		}
	}
	if e.reason == ReasonNone || e.reason == ReasonBadResult {
		o := outcome(t, StatusSuccess, e.reason, e.text)
		if e.result != nil {
			text := string(e.result)
			o.outcome.Result = &text
		}
		return o
	}
	if e.crash || e.reason == ReasonInterrupted && t.Repeatable {
		if t.Crashes+1 >= maxCrashes {
			o := outcome(t, StatusError, e.reason, e.text)
			o.outcome.Crashes = 1
			return o
		}
		return requeue(t, backoff(t.Crashes+1), 1, 1, failed(t, e))
	}
	counted := t.Attempt - t.Uncounted
	if e.final || counted >= t.MaxAttempts {
		return outcome(t, StatusError, e.reason, e.text)
	}
	return requeue(t, backoff(counted), 0, 0, failed(t, e))
}

func outcome(t *TaskModel, status Status, reason Reason, text string) verdict {
	o := &dialect.Outcome{ID: t.ID, Version: &t.Version, Process: deref(t.ProcessID), Status: string(status), Reason: string(reason)}
	if text != "" {
		o.Error = &text
	}
	return verdict{outcome: o}
}

func requeue(t *TaskModel, delay time.Duration, uncounted, crashes int, errs *string) verdict {
	delay = max(0, delay)
	return verdict{next: delay, requeue: &dialect.Requeued{
		ID: t.ID, Version: t.Version, Process: deref(t.ProcessID), DelayUS: dialect.Micros(delay), Uncounted: uncounted, Crashes: crashes, Errors: errs,
	}}
}

// misfits is how often a task went back because it did not fit the process that had claimed it.
func misfits(t *TaskModel) (n int) {
	for _, a := range t.Errors {
		if a.Reason == ReasonBadArgs {
			n++
		}
	}
	return n
}

// failed is the task's list of failed attempts with this one.
func failed(t *TaskModel, e ending) *string {
	a := Attempt{Attempt: t.Attempt, Reason: e.reason, Error: text.Sanitize(e.text, maxKeptError)}
	if t.StartedAt != nil {
		a.At = *t.StartedAt
	}
	list := append(t.Errors[:len(t.Errors):len(t.Errors)], a)
	if len(list) > maxKeptAttempts {
		list = append(Attempts{list[0]}, list[len(list)-maxKeptAttempts+1:]...)
	}
	b, err := json.Marshal(list)
	if err != nil {
		return nil
	}
	text := string(b)
	return &text
}
