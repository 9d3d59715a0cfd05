package outbox

import (
	"context"
	"runtime"
	"sync"
	"time"

	"github.com/gorm-outbox/outbox/internal/dialect"
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

// finisher writes outcomes in groups, without a timer: while one group is being written the next one gathers.
type finisher struct {
	mu      sync.Mutex
	queue   []*pendingEnd
	writing bool // a group that was taken
	signal  chan struct{}
}

func newFinisher() *finisher { return &finisher{signal: make(chan struct{}, 1)} }

func (f *finisher) add(p *pendingEnd) {
	f.mu.Lock()
	f.queue = append(f.queue, p)
	f.mu.Unlock()
	select {
	case f.signal <- struct{}{}:
	default:
	}
}

// take removes a group from the queue's head. Handlers that are about to return, such as those of one claim that have
// nothing to wait for, are let through first: their outcomes would have to wait for this group to be written.
func (f *finisher) take() []*pendingEnd {
	f.mu.Lock()
	defer f.mu.Unlock()
	for before := -1; len(f.queue) > before && len(f.queue) > 0 && len(f.queue) < maxRows; {
		before = len(f.queue)
		f.mu.Unlock()
		runtime.Gosched()
		f.mu.Lock()
	}
	n, size := 0, 0
	for n < len(f.queue) && n < maxRows {
		if size += f.queue[n].size(); n > 0 && size > maxBytes {
			break
		}
		n++
	}
	group := f.queue[:n:n]
	if f.queue = f.queue[n:]; len(f.queue) == 0 {
		f.queue = nil
	}
	f.writing = n > 0
	return group
}

// busy reports whether outcomes are being written or wait for it.
func (f *finisher) busy() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.writing || len(f.queue) > 0
}

// written ends what take began.
func (f *finisher) written() {
	f.mu.Lock()
	f.writing = false
	f.mu.Unlock()
}

// writeOutcomes runs until stop is closed and the queue is empty, or writing is given up.
func (d *dispatcher) writeOutcomes(stop <-chan struct{}) {
	for {
		group := d.finisher.take()
		if len(group) > 0 {
			if written, inDoubt := d.exchange(group); !written {
				d.writeGroup(group, inDoubt, false)
			}
			d.finisher.written()
			// Once for the group, so that the next claim is not for a part of it.
			poke(d.slotFree)
			continue
		}
		select {
		case <-d.finisher.signal:
		case <-stop:
			if group = d.finisher.take(); len(group) == 0 {
				d.alone.Wait()
				return
			}
			d.writeGroup(group, false, false)
		}
	}
}

// writeGroup makes a group of outcomes durable, however long that takes; their slots stay taken until then. Only a
// shutdown that has waited long enough gives up: then the tasks are found as interrupted. inDoubt says that an earlier try
// may have been committed although its reply was lost, alone that nothing else waits for this group.
func (d *dispatcher) writeGroup(group []*pendingEnd, inDoubt, alone bool) {
	for try := 0; ; try++ {
		outcomes, requeued := split(group)
		ctx, cancel := context.WithTimeout(d.writeCtx, d.statementLimit())
		done, err := d.store.write(ctx, outcomes, requeued)
		if err == nil && inDoubt {
			err = d.addLanded(ctx, group, outcomes, done)
		}
		cancel()
		if err == nil {
			d.trouble.over("write outcomes")
			d.durable(group, done)
			poke(d.slotFree)
			return
		}
		switch class := dialect.Classify(err); {
		case len(group) > 1 && (class == dialect.Data || class == dialect.Other && try >= 4):
			// One of them is the cause.
			d.writeGroup(group[:len(group)/2], inDoubt, alone)
			d.writeGroup(group[len(group)/2:], inDoubt, alone)
			return
		case class == dialect.Other && try >= 4 && !alone:
			// The others' outcomes must not wait for what may never succeed.
			d.alone.Go(func() { d.writeGroup(group, inDoubt, true) })
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
			poke(d.slotFree)
			return
		case class == dialect.Lost:
			inDoubt = true
		}
		d.trouble.met("write outcomes", err)
		if wait(d.writeCtx, min(50*time.Millisecond<<min(try, 10), 5*time.Second)) != nil {
			for _, p := range group {
				d.log.Error("outbox: outcome not recorded", p.run.attrs("err", err)...)
				d.unrecorded(p)
			}
			poke(d.slotFree)
			return
		}
	}
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
func (d *dispatcher) durable(group []*pendingEnd, done map[string]bool) {
	again := false
	for _, p := range group {
		p.run.durable(p.ending, p.verdict, !done[p.run.task.ID])
		again = again || p.verdict.requeue != nil
	}
	if again {
		d.wake() // to set the timer to the next attempt
	}
}

// unrecorded releases a run whose outcome was given up. Its row may still be running, and must not be taken for a claim
// that nobody has run.
func (d *dispatcher) unrecorded(p *pendingEnd) {
	d.mu.Lock()
	d.hadRun[p.run.task.ID] = true
	d.mu.Unlock()
	p.run.over(Finish{Reason: ReasonInterrupted, Err: errOutcomeLost, Duration: p.ending.duration})
	p.run.release()
}

// addLanded marks those done whose rows an earlier try has moved. A row that it put back to pending cannot be told from a
// lost claim; nothing was lost then, so it counts as done.
func (d *dispatcher) addLanded(ctx context.Context, group []*pendingEnd, outcomes []dialect.Outcome, done map[string]bool) error {
	var missing []dialect.Outcome
	for _, o := range outcomes {
		if !done[o.ID] {
			missing = append(missing, o)
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
	note := cleanText("the outcome's texts were refused by the database: "+errorText(cause), 1000)
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
