package dispatch

import (
	"context"
	"log/slog"
	"runtime"
	"sync"
	"time"

	"github.com/gorm-outbox/outbox/internal/dialect"
	"github.com/gorm-outbox/outbox/internal/store"
)

// completer gathers the outcomes of runs and writes them in groups, without a timer: while one
// group is written the next one gathers. Under load it claims the next tasks for the slots of the
// group that it writes, as a rule in the same transaction: one commit for a group instead of two,
// and one claim for all its slots instead of many for a few. A slot still stays taken until its
// outcome is persisted: the claim commits with it, or later.
type completer struct {
	store    *store.Store
	lease    *lease
	slots    *slots
	claimer  *claimer
	recovery *recovery
	outages  *outages
	wakeups  *wakeups
	log      *slog.Logger
	limit    time.Duration   // of a statement
	ctx      context.Context // of what must be written after a cancellation

	writers  int            // groups that are written at a time
	full     int            // the size from which on a group does not wait for another one
	signal   chan struct{}  // of one: a group may be ready
	isolated sync.WaitGroup // writers of outcomes that the database does not take

	mu      sync.Mutex
	queue   []*completion
	writing int // groups
}

// completion is an outcome on its way to the database.
type completion struct {
	run        *run
	result     result
	transition transition
	ran        bool // the handler was called, or was about to be
}

func (p *completion) size() int {
	n := 256
	if o := p.transition.outcome; o != nil {
		n += length(o.Result) + length(o.Error) + length(o.Errors)
	} else {
		n += length(p.transition.requeue.Errors)
	}
	return n
}

func length(text *string) int {
	if text == nil {
		return 0
	}
	return len(*text)
}

// minGroup of outcomes: fewer wait for the group that is being written, because a commit costs more
// than what it holds.
const minGroup = 25

// maxSpins is how often take lets other goroutines run without a new outcome, for some 30 µs:
// other processors may be at work on one. Without it the default ten slots work off a backlog at
// .58 of the rate (table defaults of make bench: 3,900 instead of 6,800 tasks/s).
const maxSpins = 100

func (c *completer) add(p *completion) {
	c.mu.Lock()
	c.queue = append(c.queue, p)
	c.signalIfReadyLocked()
	c.mu.Unlock()
}

// c.mu must be held.
func (c *completer) readyLocked() bool {
	return len(c.queue) >= c.full || c.writing == 0 && len(c.queue) > 0
}

// c.mu must be held.
func (c *completer) signalIfReadyLocked() {
	if c.readyLocked() {
		signal(c.signal)
	}
}

// take removes a group from the queue's head, if one is to be written now. It lets handlers that
// are about to return finish first, such as those of one claim that have nothing to wait for: their
// outcomes would have to wait for this group, and the runs of one claim, once apart, stay apart.
func (c *completer) take() []*completion {
	runs := c.slots.taken()
	c.mu.Lock()
	defer c.mu.Unlock()
	begun := time.Now()
	for before, spins := -1, 0; len(c.queue) > 0 && len(c.queue) < min(c.full, runs); spins++ {
		if len(c.queue) > before {
			before, spins = len(c.queue), 0
		}
		if spins == maxSpins || time.Since(begun) > time.Millisecond {
			break
		}
		c.mu.Unlock()
		runtime.Gosched()
		c.mu.Lock()
	}
	if !c.readyLocked() {
		return nil
	}
	n, size := 0, 0
	for n < len(c.queue) && n < c.full {
		if size += c.queue[n].size(); n > 0 && size > store.MaxBytes {
			break
		}
		n++
	}
	group := c.queue[:n:n]
	if c.queue = c.queue[n:]; len(c.queue) == 0 {
		c.queue = nil
	}
	c.writing++
	c.signalIfReadyLocked() // another group
	return group
}

// busy reports whether outcomes are being written or wait for it.
func (c *completer) busy() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.writing > 0 || len(c.queue) > 0
}

// written ends what take began.
func (c *completer) written() {
	c.mu.Lock()
	c.writing--
	c.mu.Unlock()
}

// run writes groups until stop is closed and the queue is empty.
func (c *completer) run(stop <-chan struct{}) {
	var writers sync.WaitGroup
	for range c.writers {
		writers.Go(func() { c.writeGroups(stop) })
	}
	writers.Wait()
	c.isolated.Wait()
}

// writeGroups ends when the queue holds only what another writer will take.
func (c *completer) writeGroups(stop <-chan struct{}) {
	for {
		group := c.take()
		if len(group) > 0 {
			if written, failed := c.completeAndClaim(group); !written {
				c.write(group, failed)
			}
			c.written()
			c.wakeups.add(slotFreed) // once for the group, so that the next claim is not for a part of it
			continue
		}
		select {
		case <-c.signal:
		case <-stop:
			if group = c.take(); len(group) == 0 {
				return
			}
			c.write(group, nil)
			c.written()
		}
	}
}

// settle releases the runs of a group that is written. Those that are not done have lost their
// claims.
func (c *completer) settle(group []*completion, done store.Let) {
	again := false
	// This process may have claimed a task again after it had lost it: then only the last claim of
	// the task was written.
	newest := map[string]int64{}
	if !done.All && len(done.IDs) < len(group) {
		for _, p := range group {
			newest[p.run.task.ID] = max(newest[p.run.task.ID], p.run.task.Version)
		}
	}
	for _, p := range group {
		t := p.run.task
		p.run.settle(p, !done.Has(t.ID) || t.Version < newest[t.ID])
		again = again || p.transition.requeue != nil
	}
	if again {
		c.wakeups.add(maybeDue) // to set the timer to the next attempt
	}
}

// splitAt: groups of at least this size are completed and refilled in two transactions instead of
// one statement. A claim locks a row before it looks at the row's newest state, SKIP LOCKED or not.
// The longer the completion in the same statement takes, the older the claim's snapshot is, and the
// more rows the other writer has claimed since. The claim locks those too, to its end, so that the
// other writer's next statement has to wait. For smaller groups the second commit costs more.
const splitAt = 200

// completeAndClaim writes a group and claims for its slots and for those that are free. It leaves
// the group to write when nothing is to be claimed, and after an error, which it returns: it may
// have taken effect nevertheless.
func (c *completer) completeAndClaim(group []*completion) (written bool, err error) {
	own, free := c.reserve(group)
	if own+free == 0 {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(c.ctx, c.lockPatience())
	defer cancel()
	outcomes, requeued := split(group)
	if c.store.CanCompleteAndClaim(requeued) && len(outcomes) >= splitAt {
		done, err := c.store.CompleteOutcomes(ctx, outcomes)
		if err != nil {
			c.refilled(free)
			return false, err
		}
		c.slots.transfer(own)
		c.settle(group, done)
		c.refill(own + free)
		return true, nil
	}
	most := c.claimer.largest.of(own + free)
	plan := c.claimer.plan("", most)
	if len(plan) == 0 { // another claim has it meanwhile
		c.refilled(free)
		return false, nil
	}
	done, lists, err := c.store.CompleteAndClaim(ctx, outcomes, requeued, plan.params(), most)
	c.claimer.largest.note(most, err)
	if err != nil {
		c.recovery.claimReplyLost()
		c.wakeups.add(maybeDue) // what it had locked may be behind the cursors of another claim by now
		c.refilled(free)
		return false, err
	}
	list := plan.claimed(lists, most)
	c.slots.transfer(own)
	c.settle(group, done)
	c.claimer.start(list)
	c.refilled(own + free)
	c.goOn()
	return true, nil
}

// refill claims for slots that are reserved for it.
func (c *completer) refill(reserved int) {
	ctx, cancel := context.WithTimeout(c.ctx, c.limit)
	defer cancel()
	most := c.claimer.largest.of(reserved)
	if plan := c.claimer.plan("", most); len(plan) > 0 {
		// The writer is not locked: a database that is split at has many.
		lists, err := c.store.Claim(ctx, plan.params(), most)
		c.claimer.largest.note(most, err)
		if err != nil {
			c.recovery.claimReplyLost()
			c.refilled(reserved)
			c.wakeups.add(maybeDue) // the loop claims now, and logs what keeps it from that
			return
		}
		c.claimer.start(plan.claimed(lists, most))
	}
	c.refilled(reserved)
	c.goOn()
}

// goOn has the loop claim for the slots that a claim of some queues has left free.
func (c *completer) goOn() {
	if c.slots.free() > 0 && c.claimer.mayHaveMore() {
		c.wakeups.add(slotFreed)
	}
}

// reserve decides for how many slots a claim may be made with a group: the group's own, and those
// that are free, which are reserved from now on. None means that no claim may be made.
func (c *completer) reserve(group []*completion) (own, free int) {
	if !c.claimer.mayHaveMore() || !c.lease.valid() || !c.recovery.beginRefill() {
		return 0, 0
	}
	for _, p := range group {
		if p.run.state.is() != runStuck { // its slot stays taken
			own++
		}
	}
	if free = c.slots.reserve(); own+free == 0 {
		c.recovery.endRefill()
	}
	return own, free
}

// refilled ends what reserve began.
func (c *completer) refilled(reserved int) {
	c.slots.release(reserved)
	c.recovery.endRefill()
}

// lockPatience bounds what writes a whole group, for a row that another transaction has locked
// holds up all of it.
func (c *completer) lockPatience() time.Duration {
	if c.store.Dialect.SkipLocked() == "" {
		return c.limit // no single row can be locked
	}
	return min(c.limit, 2*time.Second)
}

func split(group []*completion) (outcomes []dialect.Outcome, requeued []dialect.Requeued) {
	for _, p := range group {
		if p.transition.outcome != nil {
			outcomes = append(outcomes, *p.transition.outcome)
		} else {
			requeued = append(requeued, *p.transition.requeue)
		}
	}
	return outcomes, requeued
}
