package admin

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
)

// bulkActions are the actions that can change many tasks at once.
var bulkActions = []Action{Rerun, RunNow, Reschedule, Cancel, Discard}

const (
	batchSize   = 100 // changes in one transaction
	bulkTimeout = time.Minute
	maxSkipped  = 1000 // maximum number of skipped tasks that are listed
)

// bulk is a change of many tasks: of picked tasks, or of all tasks that a filter showed.
type bulk struct {
	action Action
	reason string
	at     time.Time // the new start time for Reschedule
	picked []pick
	filter *filter
	asOf   time.Time // when the filter's tasks were shown
	count  int       // how many tasks were shown
	shown  shown     // which were shown; nil means all that match now, if at most count
}

type pick struct {
	ID      string
	Version int64
}

// result is the result of a bulk change.
type result struct {
	Changed int       `json:"changed"`
	Skipped []skipped `json:"skipped"`
	// More means that some tasks were not changed: the change took too long or failed, or more than
	// 10,000 tasks matched.
	More   bool `json:"more,omitempty"`
	counts map[string]int
}

type skipped struct {
	ID     string `json:"id"`
	Reason string `json:"reason"`
}

var skipReasons = []string{"running", "gone", "changed", "key_held", "unknown_function", "bad_args"}

// skipReason says in a word why a task was not changed; "" means that the error is not about the
// task.
func skipReason(err error) string {
	var p *problem
	switch {
	case errors.Is(err, outbox.ErrRunning):
		return "running"
	case errors.Is(err, outbox.ErrNotFound):
		return "gone"
	case errors.Is(err, outbox.ErrDuplicateKey):
		return "key_held"
	case errors.Is(err, outbox.ErrUnknownFunc):
		return "unknown_function"
	case errors.Is(err, outbox.ErrBadArgs):
		return "bad_args"
	case errors.Is(err, outbox.ErrConflict), errors.As(err, &p) && p.Status == http.StatusConflict:
		return "changed"
	}
	return ""
}

func (q *request) bulk(b bulk) (res result, err error) {
	res = result{Skipped: []skipped{}, counts: map[string]int{}}
	ctx, cancel := context.WithTimeout(q.r.Context(), q.s.bulkLimit)
	defer cancel()
	q.ctx, q.limit = ctx, q.s.bulkLimit
	defer q.s.forget()
	if b.filter == nil {
		for part := range slices.Chunk(b.picked, batchSize) {
			if err = q.batch(ctx, b, part, &res); err != nil {
				break
			}
		}
		return res, q.partly(&res, err)
	}
	f := *b.filter
	f.asOf = b.asOf
	switch {
	case f.State == all || f.State == running:
		return res, fail(http.StatusBadRequest, "Choose a state first: tasks of %s cannot be changed together.", f.State)
	case f.Args != "" && q.s.opts.Redact != nil:
		return res, fail(http.StatusBadRequest, "Where arguments are redacted, what a search in them finds has to be picked one by one.")
	case b.shown == nil && destroys(b.action):
		return res, fail(http.StatusBadRequest, "What destroys needs shown, as the list gave it: which tasks they were.")
	}
	if b.shown == nil {
		n, err := q.s.count(ctx, f, b.asOf)
		if err != nil {
			return res, err
		}
		if n > b.count {
			return res, fail(http.StatusConflict, "%d tasks were shown; %d match now. Reload the list and look again.", b.count, n)
		}
	}
	return res, q.partly(&res, q.bulkShown(ctx, b, f, &res))
}

// bulkShown changes the tasks that were shown among the tasks that a filter finds. It does not
// change a task that matches now but was not shown.
func (q *request) bulkShown(ctx context.Context, b bulk, f filter, res *result) error {
	read, met := 0, 0
	for rows, err := range q.s.walk(ctx, f, b.asOf, batchSize) {
		if err != nil {
			return err
		}
		part, left := make([]pick, 0, len(rows)), []skipped{}
		for _, r := range rows {
			switch {
			case b.action == Reschedule && r.State == outbox.StatePending && r.RunAt.Sub(b.at).Abs() < time.Millisecond:
				// A task that was rescheduled comes again at its new place: in this walk, or when a
				// change that was cut short is repeated.
			case b.shown == nil || b.shown[markOf(r.ID, r.Version)]:
				part = append(part, pick{r.ID, r.Version})
			case len(b.shown) < maxCount: // otherwise more tasks matched than the set holds
				left = append(left, skipped{r.ID, "changed"})
			}
		}
		if err := q.batch(ctx, b, part, res); err != nil {
			return err
		}
		res.skip(left...)
		read += len(rows)
		met += len(part)
		if b.shown == nil && read >= maxCount || read >= 2*maxCount || len(b.shown) == maxCount && met == maxCount {
			res.More = true
			break
		}
	}
	return nil
}

// destroys reports whether an action removes a task, so that pages ask for confirmation.
func destroys(a Action) bool { return a == Cancel || a == Discard }

// partly reports the changes before an error, if any, instead of the error: they are committed.
func (q *request) partly(res *result, err error) error {
	if err != nil && len(res.counts)+res.Changed > 0 {
		q.s.opts.Logger.Warn("outbox admin: a change of many tasks stopped half-way", "changed", res.Changed, "err", err)
		res.More = true
		return nil
	}
	return err
}

// batch changes some tasks in one transaction. It skips tasks that do not allow the change.
func (q *request) batch(ctx context.Context, b bulk, part []pick, res *result) error {
	changed, left := 0, []skipped{}
	err := q.s.inTx(ctx, func(tx *gorm.DB) error {
		for _, p := range part {
			_, err := q.s.applyIn(ctx, tx, q.actor, change{action: b.action, id: p.ID, version: p.Version, at: b.at, reason: b.reason})
			if err == nil {
				changed++
				continue
			}
			why := skipReason(err)
			if why == "" {
				return err
			}
			left = append(left, skipped{p.ID, why})
		}
		return nil
	})
	if err != nil {
		return err
	}
	res.Changed += changed
	res.skip(left...)
	return nil
}

func (res *result) skip(left ...skipped) {
	for _, s := range left {
		res.counts[s.Reason]++
	}
	res.Skipped = append(res.Skipped, left[:min(len(left), maxSkipped-len(res.Skipped))]...)
}

// summary is the part of a URL that says what was done. It has only known words and numbers.
func (res result) summary() string {
	var parts []string
	for _, why := range skipReasons {
		if n := res.counts[why]; n > 0 {
			parts = append(parts, why+"."+itoa(n))
		}
	}
	if res.More {
		parts = append(parts, "more.1")
	}
	return strings.Join(parts, "~")
}
