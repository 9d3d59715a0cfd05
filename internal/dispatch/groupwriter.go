package dispatch

import (
	"context"
	"errors"
	"time"

	"github.com/gorm-outbox/outbox/internal/dialect"
	"github.com/gorm-outbox/outbox/internal/guard"
	"github.com/gorm-outbox/outbox/internal/store"
	"github.com/gorm-outbox/outbox/internal/text"
)

// groupWriter persists a group of outcomes, however long that takes; their slots stay taken until
// then. It isolates what does not go through. Only the end of the completer's context, after a
// shutdown has waited long enough, makes it give up: then the tasks are found as interrupted.
type groupWriter struct {
	c        *completer
	group    []*completion // what is still to be written
	since    time.Time     // of the first attempt
	isolated bool          // no other outcome waits for this group

	try        int
	last       error // of the last attempt
	failed     error // of an earlier attempt that may have taken effect, or nil
	inDoubt    bool  // an earlier attempt may have taken effect
	skipLocked bool  // leave out rows that another transaction has locked
}

// stepEnd is how one attempt to write a group ended.
type stepEnd int

const (
	stepDone    stepEnd = iota // nothing is left to write
	stepRepeat                 // what the database refused was changed: write again at once
	stepRetry                  // write again after a pause
	stepSplit                  // one of them is the cause: write each half by itself
	stepIsolate                // write it beside the other groups, which must not wait for it
)

// write persists a group. failed is the error of an earlier attempt, or nil.
func (c *completer) write(group []*completion, failed error) {
	c.newGroupWriter(group, time.Now(), failed, false).run()
}

func (c *completer) newGroupWriter(group []*completion, since time.Time, failed error, isolated bool) *groupWriter {
	class := dialect.Classify(failed)
	inDoubt := class == dialect.Lost
	return &groupWriter{c: c, group: group, since: since, isolated: isolated, failed: failed, inDoubt: inDoubt,
		skipLocked: isolated || inDoubt || mayBeLocked(class)}
}

func (w *groupWriter) run() {
	for {
		switch w.step() {
		case stepDone:
			return
		case stepRepeat:
		case stepSplit:
			half := len(w.group) / 2
			w.c.newGroupWriter(w.group[:half], w.since, w.failed, w.isolated).run()
			w.c.newGroupWriter(w.group[half:], w.since, w.failed, w.isolated).run()
			return
		case stepIsolate:
			w.c.isolated.Go(w.c.newGroupWriter(w.group, w.since, w.failed, true).run)
			return
		case stepRetry:
			if dialect.Wait(w.c.ctx, min(50*time.Millisecond<<min(w.try, 10), 5*time.Second)) != nil {
				w.giveUp()
				return
			}
		}
		w.try++
	}
}

var errRowLocked = errors.New("another transaction has locked the task's row")

// step tries to write the group once.
func (w *groupWriter) step() stepEnd {
	c := w.c
	err := w.writeOnce()
	if err == nil && len(w.group) == 0 {
		c.outages.recovered(w.name())
		return stepDone
	}
	class := dialect.Classify(err)
	// The database works, so it is these outcomes that do not go through.
	stuck := err != nil && w.try >= 4 && (class == dialect.Other || c.lease.beatenSince(w.since))
	switch {
	case err == nil && !w.isolated:
		for _, p := range w.group {
			c.log.Warn("outbox: outcome waits, another transaction has locked the task's row", p.run.attrs()...)
		}
		return stepIsolate
	case err == nil:
		w.last = errRowLocked
		return stepRetry
	case len(w.group) > 1 && (class == dialect.Data || stuck):
		return stepSplit
	case stuck && !w.isolated:
		return stepIsolate
	case class == dialect.Data:
		return w.refused(err)
	case class == dialect.Lost:
		w.inDoubt, w.skipLocked, w.failed = true, true, err
	case mayBeLocked(class):
		w.skipLocked = true
	}
	w.last = err
	c.outages.failed(w.name(), err)
	return stepRetry
}

// name is the step's in the log.
func (w *groupWriter) name() string {
	if w.isolated {
		return "write outcomes alone"
	}
	return "write outcomes"
}

// refused: the database does not take the data of the group's only outcome.
func (w *groupWriter) refused(err error) stepEnd {
	p := w.group[0]
	if replaceTexts(p, err) {
		w.c.log.Warn("outbox: outcome refused by the database, its texts are replaced", p.run.attrs("err", err)...)
		return stepRepeat
	}
	// Such as a row whose id history has already.
	w.c.log.Error("outbox: outcome refused by the database for good, the task stays as it is", p.run.attrs("err", err)...)
	w.c.notPersisted(p)
	w.c.wakeups.add(slotFreed)
	return stepDone
}

func (w *groupWriter) giveUp() {
	for _, p := range w.group {
		w.c.log.Error("outbox: outcome not recorded", p.run.attrs("err", w.last)...)
		p.run.givenUp.Store(true)
		w.c.notPersisted(p)
	}
	w.c.wakeups.add(slotFreed)
}

// notPersisted releases a run whose outcome was refused or given up.
func (c *completer) notPersisted(p *completion) {
	c.recovery.outcomeLost(p.run.task)
	p.run.over(End{Reason: ReasonInterrupted, Err: errOutcomeLost, Duration: p.result.duration})
	p.run.release()
}

// mayBeLocked reports whether a statement may have failed because it waited for a lock of another
// transaction.
func mayBeLocked(class dialect.Class) bool { return class == dialect.Busy || class == dialect.Retry }

// writeOnce leaves in the group what is still to be written: all of it after an error, and those
// whose rows are locked when it leaves these out.
func (w *groupWriter) writeOnce() error {
	limit := w.c.lockPatience()
	if w.skipLocked {
		limit = w.c.limit
	}
	ctx, cancel := context.WithTimeout(w.c.ctx, limit)
	defer cancel()
	outcomes, requeued := split(w.group)
	var done, locked map[string]bool
	var err error
	if w.skipLocked && w.c.store.Dialect.SkipLocked() != "" {
		done, locked, err = w.c.store.CompleteUnlocked(ctx, outcomes, requeued)
	} else {
		done, err = w.c.store.Complete(ctx, outcomes, requeued)
	}
	if err != nil {
		return err
	}
	var left, written []*completion
	for _, p := range w.group {
		if locked[p.run.task.ID] {
			left = append(left, p)
		} else {
			written = append(written, p)
		}
	}
	if w.inDoubt {
		if err := w.c.addAlreadyApplied(ctx, written, done); err != nil {
			return err
		}
	}
	w.c.settle(written, store.Let{IDs: done})
	w.c.wakeups.add(slotFreed)
	w.group = left
	return nil
}

// addAlreadyApplied marks those done whose rows an earlier attempt has moved. A row that it put
// back to pending cannot be told from a lost claim; nothing was lost then, so it counts as done.
func (c *completer) addAlreadyApplied(ctx context.Context, group []*completion, done map[string]bool) error {
	var missing []dialect.Outcome
	for _, p := range group {
		if o := p.transition.outcome; o != nil && !done[o.ID] {
			missing = append(missing, *o)
		}
	}
	there, err := c.store.AlreadyApplied(ctx, missing)
	if err != nil {
		return err
	}
	for id := range there {
		done[id] = true
	}
	for _, p := range group {
		if p.transition.requeue != nil {
			done[p.run.task.ID] = true
		}
	}
	return nil
}

// replaceTexts takes out of an outcome what the database may have refused; false when nothing is
// left to take out.
func replaceTexts(p *completion, cause error) bool {
	note := text.Sanitize("the outcome's texts were refused by the database: "+guard.ErrorText(cause), 1000)
	if r := p.transition.requeue; r != nil {
		changed := r.Errors != nil
		r.Errors = nil
		return changed
	}
	o := p.transition.outcome
	if o.Result == nil && o.Errors == nil && o.Error != nil && *o.Error == note {
		return false
	}
	o.Result, o.Errors, o.Error = nil, nil, &note
	return true
}
