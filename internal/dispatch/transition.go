package dispatch

import (
	"encoding/json"
	"errors"
	"time"

	"github.com/gorm-outbox/outbox/internal/dialect"
	"github.com/gorm-outbox/outbox/internal/store"
	"github.com/gorm-outbox/outbox/internal/text"
)

// What becomes of a task after a run is decided by pure functions of the task, as it was claimed,
// and of the run's result.

// maxCrashes ends a repeatable task that kills its process again and again.
const maxCrashes = 3

// maxMisfits bounds how often a task is requeued because it does not fit the process that has
// claimed it. With the default backoff this takes over an hour, in which a deploy is over.
const maxMisfits = 12

// A task keeps its first failed attempt and the latest of the others, each with a shortened text.
const (
	maxKeptAttempts = 20
	maxKeptError    = 4 << 10
)

// result is how a run ended.
type result struct {
	reason   string // ReasonNone means that the handler returned nil
	err      error
	text     string  // the error's text, as it is stored
	value    *string // what the handler returned besides its error
	duration time.Duration
	delay    time.Duration // with giveBack
	giveBack bool          // the run did nothing that lasts and does not count

	// final: no further attempt, whatever is left. What the run did is unknown, or it cannot
	// succeed.
	final     bool
	crash     bool // counts as an interrupted run of a repeatable handler does
	elsewhere bool // another process may be able to run the task
}

// transition is what becomes of a task after a run: it moves to history, or back to pending. One of
// outcome and requeue is set.
type transition struct {
	outcome *dialect.Outcome
	requeue *dialect.Requeued
	next    time.Duration // until it is due, with requeue
}

// decide turns a result into what is written.
func decide(t *store.Task, res result, backoff func(int) time.Duration) transition {
	if res.giveBack {
		return requeue(t, res.delay, 1, 0, nil)
	}
	if n := misfits(t); res.elsewhere && n < maxMisfits {
		return requeue(t, DefaultBackoff(n+1), 1, 0, failed(t, res))
	}
	if res.reason == ReasonFailed || res.reason == ReasonSnoozed {
		var snooze *SnoozeError
		if errors.As(res.err, &snooze) {
			return requeue(t, snooze.For, 1, 0, nil)
		}
	}
	if res.reason == ReasonNone || res.reason == ReasonBadResult {
		o := outcome(t, store.Success, res.reason, res.text)
		o.outcome.Result = res.value
		return o
	}
	if res.crash || res.reason == ReasonInterrupted && t.Repeatable {
		if t.Crashes+1 >= maxCrashes {
			o := outcome(t, store.Error, res.reason, res.text)
			o.outcome.Crashes = 1
			return o
		}
		return requeue(t, backoff(t.Crashes+1), 1, 1, failed(t, res))
	}
	counted := t.Attempt - t.Uncounted
	if res.final || counted >= t.MaxAttempts {
		return outcome(t, store.Error, res.reason, res.text)
	}
	return requeue(t, backoff(counted), 0, 0, failed(t, res))
}

func outcome(t *store.Task, status, reason, text string) transition {
	o := &dialect.Outcome{ID: t.ID, Version: &t.Version, Process: t.Owner(), Status: status, Reason: reason}
	if text != "" {
		o.Error = &text
	}
	return transition{outcome: o}
}

func requeue(t *store.Task, delay time.Duration, uncounted, crashes int, errs *string) transition {
	delay = max(0, delay)
	return transition{next: delay, requeue: &dialect.Requeued{
		ID: t.ID, Version: t.Version, Process: t.Owner(), DelayUS: dialect.Micros(delay), Uncounted: uncounted, Crashes: crashes, Errors: errs,
	}}
}

// misfits is how often a task was requeued because it did not fit the process.
func misfits(t *store.Task) (n int) {
	for _, a := range attempts(t.Errors) {
		if a.Reason == ReasonBadArgs {
			n++
		}
	}
	return n
}

// failed is the task's list of failed attempts with this one.
func failed(t *store.Task, res result) *string {
	a := Attempt{Attempt: t.Attempt, Reason: res.reason, Error: text.Sanitize(res.text, maxKeptError)}
	if t.StartedAt != nil {
		a.At = *t.StartedAt
	}
	list := append(attempts(t.Errors), a)
	if len(list) > maxKeptAttempts {
		list = append([]Attempt{list[0]}, list[len(list)-maxKeptAttempts+1:]...)
	}
	b, err := json.Marshal(list)
	if err != nil {
		return nil
	}
	text := string(b)
	return &text
}
