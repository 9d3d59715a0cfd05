package outbox

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"time"

	"github.com/gorm-outbox/outbox/internal/dialect"
	"github.com/gorm-outbox/outbox/internal/text"
)

// pendingEnd is an outcome that is not durable yet.
type pendingEnd struct {
	run     *run
	ending  ending
	verdict verdict
}

func (p *pendingEnd) size() int {
	n := 256
	if o := p.verdict.outcome; o != nil {
		n += len(deref(o.Result)) + len(deref(o.Error)) + len(deref(o.Errors))
	} else {
		n += len(deref(p.verdict.requeue.Errors))
	}
	return n
}

// finisher gathers outcomes in groups, without a timer: while one group is being written the next one gathers. Once that one is
// whole, it does not wait for the other: so the database has something to do while this process runs tasks.
type finisher struct {
	mu      sync.Mutex
	queue   []*pendingEnd
	whole   int // so many make a group that waits for no other
	writing int // groups that were taken
	signal  chan struct{}
}

// stragglers are waited for so many looks without one, some 30 µs: the other processors may be at work on them.
const stragglers = 100

func newFinisher(whole int) *finisher {
	return &finisher{whole: min(whole, maxRows), signal: make(chan struct{}, 1)}
}

func (f *finisher) add(p *pendingEnd) {
	f.mu.Lock()
	f.queue = append(f.queue, p)
	f.signalIfReady()
	f.mu.Unlock()
}

func (f *finisher) ready() bool {
	return len(f.queue) >= f.whole || f.writing == 0 && len(f.queue) > 0
}

func (f *finisher) signalIfReady() {
	if f.ready() {
		signal(f.signal)
	}
}

// take removes a group from the queue's head, if there is one to be written now. Handlers that are about to return, such as
// those of one claim that have nothing to wait for, are let through first: their outcomes would have to wait for this group
// to be written, and a claim that was taken apart once would stay so. There are runs in all, whose outcomes are not written.
func (f *finisher) take(runs int) []*pendingEnd {
	f.mu.Lock()
	defer f.mu.Unlock()
	begun := time.Now()
	for before, alike := -1, 0; len(f.queue) > 0 && len(f.queue) < min(f.whole, runs); alike++ {
		if len(f.queue) > before {
			before, alike = len(f.queue), 0
		}
		if alike == stragglers || time.Since(begun) > time.Millisecond {
			break
		}
		f.mu.Unlock()
		runtime.Gosched()
		f.mu.Lock()
	}
	if !f.ready() {
		return nil
	}
	n, size := 0, 0
	for n < len(f.queue) && n < f.whole {
		if size += f.queue[n].size(); n > 0 && size > maxBytes {
			break
		}
		n++
	}
	group := f.queue[:n:n]
	if f.queue = f.queue[n:]; len(f.queue) == 0 {
		f.queue = nil
	}
	f.writing++
	f.signalIfReady() // another one
	return group
}

// busy reports whether outcomes are being written or wait for it.
func (f *finisher) busy() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.writing > 0 || len(f.queue) > 0
}

// written ends what take began.
func (f *finisher) written() {
	f.mu.Lock()
	f.writing--
	f.mu.Unlock()
}

// writeOutcomes runs until stop is closed and the queue is empty but for what another writer will take, or writing is given
// up.
func (d *dispatcher) writeOutcomes(stop <-chan struct{}) {
	for {
		group := d.finisher.take(d.running())
		if len(group) > 0 {
			if written, failed := d.exchange(group); !written {
				d.writeGroup(group, time.Now(), failed, false)
			}
			d.finisher.written()
			// Once for the group, so that the next claim is not for a part of it.
			signal(d.slotFree)
			continue
		}
		select {
		case <-d.finisher.signal:
		case <-stop:
			if group = d.finisher.take(d.running()); len(group) == 0 {
				return
			}
			d.writeGroup(group, time.Now(), nil, false)
			d.finisher.written()
		}
	}
}

// lockPatience bounds what writes a whole group, for a row that another transaction has locked holds up all of it.
func (d *dispatcher) lockPatience() time.Duration {
	if d.store.d.SkipLocked() == "" {
		return d.statementLimit() // there are no locks of single rows
	}
	return min(d.statementLimit(), 2*time.Second)
}

// writeGroup makes a group of outcomes durable, however long that takes; their slots stay taken until then. Only a
// shutdown that has waited long enough gives up: then the tasks are found as interrupted. It has been tried since then, and
// failed is the error of an earlier try, if there was one; alone says that nothing else waits for this group.
func (d *dispatcher) writeGroup(group []*pendingEnd, since time.Time, failed error, alone bool) {
	class := dialect.Classify(failed)
	inDoubt := class == dialect.Lost // it may have been committed although its reply was lost
	careful := alone || inDoubt || mayBeLocked(class)
	step := "write outcomes"
	if alone {
		step = "write outcomes alone"
	}
	for try := 0; ; try++ {
		err := d.writeOnce(&group, inDoubt, careful)
		if err == nil && len(group) == 0 {
			d.outages.recovered(step)
			return
		}
		class := dialect.Classify(err)
		// It is these outcomes that do not go through, be it that they are more than one statement can hold or bear.
		stuck := err != nil && try >= 4 && (class == dialect.Other || d.lease.beatenSince(since))
		switch {
		case err == nil && !alone:
			for _, p := range group {
				d.log.Warn("outbox: outcome waits, another transaction has locked the task's row", p.run.attrs()...)
			}
			d.alone.Go(func() { d.writeGroup(group, since, failed, true) })
			return
		case err == nil:
			err = errRowLocked
		case len(group) > 1 && (class == dialect.Data || stuck):
			// One of them is the cause.
			d.writeGroup(group[:len(group)/2], since, failed, alone)
			d.writeGroup(group[len(group)/2:], since, failed, alone)
			return
		case stuck && !alone:
			// The others' outcomes must not wait for what may never succeed.
			d.alone.Go(func() { d.writeGroup(group, since, failed, true) })
			return
		case class == dialect.Data:
			if replaceTexts(group[0], err) {
				d.log.Warn("outbox: outcome refused by the database, its texts are replaced", group[0].run.attrs("err", err)...)
				continue
			}
			// Such as a row whose id history has already. The others' outcomes must not wait for it.
			d.log.Error("outbox: outcome refused by the database for good, the task stays as it is", group[0].run.attrs("err", err)...)
			group[0].run.recorded.Store(true)
			d.unrecorded(group[0])
			signal(d.slotFree)
			return
		case class == dialect.Lost:
			inDoubt, careful, failed = true, true, err
		case mayBeLocked(class):
			careful = true
		}
		if err != errRowLocked { // which has been logged
			d.outages.failed(step, err)
		}
		if wait(d.writeCtx, min(50*time.Millisecond<<min(try, 10), 5*time.Second)) != nil {
			for _, p := range group {
				d.log.Error("outbox: outcome not recorded", p.run.attrs("err", err)...)
				d.unrecorded(p)
			}
			signal(d.slotFree)
			return
		}
	}
}

// mayBeLocked reports whether a statement may have failed because it waited for a lock of another transaction.
func mayBeLocked(class dialect.Class) bool { return class == dialect.Busy || class == dialect.Retry }

var errRowLocked = errors.New("another transaction has locked the task's row")

// writeOnce tries to write a group, and leaves in it what is still to be written: all of it after an error, and those whose
// rows are locked when it was careful.
func (d *dispatcher) writeOnce(group *[]*pendingEnd, inDoubt, careful bool) error {
	limit := d.lockPatience()
	if careful {
		limit = d.statementLimit()
	}
	ctx, cancel := context.WithTimeout(d.writeCtx, limit)
	defer cancel()
	outcomes, requeued := split(*group)
	var done, locked map[string]bool
	var err error
	if careful && d.store.d.SkipLocked() != "" {
		done, locked, err = d.store.writeUnlocked(ctx, outcomes, requeued)
	} else {
		done, err = d.store.write(ctx, outcomes, requeued)
	}
	if err != nil {
		return err
	}
	var left, written []*pendingEnd
	for _, p := range *group {
		if locked[p.run.task.ID] {
			left = append(left, p)
		} else {
			written = append(written, p)
		}
	}
	if inDoubt {
		if err := d.addLanded(ctx, written, done); err != nil {
			return err
		}
	}
	d.durable(written, fenced{ids: done})
	signal(d.slotFree)
	*group = left
	return nil
}

func split(group []*pendingEnd) (outcomes []dialect.Outcome, requeued []dialect.Requeued) {
	for _, p := range group {
		if p.verdict.outcome != nil {
			outcomes = append(outcomes, *p.verdict.outcome)
		} else {
			requeued = append(requeued, *p.verdict.requeue)
		}
	}
	return outcomes, requeued
}

// durable releases the runs of a group that is written; those that are not done have lost their claim.
func (d *dispatcher) durable(group []*pendingEnd, done fenced) {
	again := false
	newest := map[string]int64{} // of a task that this process claimed again after it had lost it, only the last claim was written
	if !done.all && len(done.ids) < len(group) {
		for _, p := range group {
			newest[p.run.task.ID] = max(newest[p.run.task.ID], p.run.task.Version)
		}
	}
	for _, p := range group {
		t := p.run.task
		p.run.durable(p.ending, p.verdict, !done.has(t.ID) || t.Version < newest[t.ID])
		again = again || p.verdict.requeue != nil
	}
	if again {
		d.wake() // to set the timer to the next attempt
	}
}

// unrecorded releases a run whose outcome was given up. Its row may still be running, and must not be taken for a claim
// that nobody has run.
func (d *dispatcher) unrecorded(p *pendingEnd) {
	d.noteRun(p.run.task)
	p.run.over(Finish{Reason: ReasonInterrupted, Err: errOutcomeLost, Duration: p.ending.duration})
	p.run.release()
}

// addLanded marks those done whose rows an earlier try has moved. A row that it put back to pending cannot be told from a
// lost claim; nothing was lost then, so it counts as done.
func (d *dispatcher) addLanded(ctx context.Context, group []*pendingEnd, done map[string]bool) error {
	var missing []dialect.Outcome
	for _, p := range group {
		if o := p.verdict.outcome; o != nil && !done[o.ID] {
			missing = append(missing, *o)
		}
	}
	there, err := d.store.landed(ctx, missing)
	if err != nil {
		return err
	}
	for id := range there {
		done[id] = true
	}
	for _, p := range group {
		if p.verdict.requeue != nil {
			done[p.run.task.ID] = true
		}
	}
	return nil
}

// replaceTexts takes out of an outcome what the database may have refused; false when nothing is left to take out.
func replaceTexts(p *pendingEnd, cause error) bool {
	note := text.Sanitize("the outcome's texts were refused by the database: "+errorText(cause), 1000)
	if r := p.verdict.requeue; r != nil {
		changed := r.Errors != nil
		r.Errors = nil
		return changed
	}
	o := p.verdict.outcome
	if o.Result == nil && o.Errors == nil && deref(o.Error) == note {
		return false
	}
	o.Result, o.Errors, o.Error = nil, nil, &note
	return true
}
