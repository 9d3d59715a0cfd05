package outbox

import "context"

// Under load, whoever writes the outcomes of a group claims the next tasks for its slots, as a rule in the same transaction: that
// is one commit a group instead of two, and a claim of a whole group instead of many of its parts. A slot still stays taken
// until its outcome is durable: the claim becomes so with it, or later.

// exchange writes a group of outcomes and claims for its slots and for those that are free. It leaves it to writeGroup
// when nothing is to be claimed, and after an error, which it returns: it may have taken effect nevertheless.
func (d *dispatcher) exchange(group []*pendingEnd) (written bool, err error) {
	own, free := d.mayExchange(group)
	if own+free == 0 {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(d.writeCtx, d.lockPatience())
	defer cancel()
	outcomes, requeued := split(group)
	if e := d.store.exchanger(requeued); e != nil && len(outcomes) >= apart {
		done, err := d.store.finish(ctx, e, outcomes)
		if err != nil {
			d.exchanged(free)
			return false, err
		}
		d.handOver(own)
		d.durable(group, done)
		d.refill(own + free)
		return true, nil
	}
	most := d.largest.of(own + free)
	plan := d.plan("", most)
	if len(plan) == 0 { // another claim has it meanwhile
		d.exchanged(free)
		return false, nil
	}
	done, lists, err := d.store.exchange(ctx, outcomes, requeued, plan.params(), most)
	d.largest.met(most, err)
	if err != nil {
		d.mayHaveClaimed()
		d.wake() // what it had locked may be behind the marks of another's claim by now
		d.exchanged(free)
		return false, err
	}
	list := plan.claimed(lists, most)
	d.handOver(own)
	d.durable(group, done)
	d.start(list)
	d.exchanged(own + free)
	d.goOn()
	return true, nil
}

// refill is the second half of an exchange whose group is written: it claims for the slots that are reserved for that.
func (d *dispatcher) refill(slots int) {
	ctx, cancel := context.WithTimeout(d.writeCtx, d.statementLimit())
	defer cancel()
	most := d.largest.of(slots)
	if plan := d.plan("", most); len(plan) > 0 {
		lists, err := d.store.claim(ctx, plan.params(), most) // no turn: what has an exchanger has no turns
		d.largest.met(most, err)
		if err != nil {
			d.mayHaveClaimed()
			d.exchanged(slots)
			d.wake() // the loop claims now, and tells what keeps it from that
			return
		}
		d.start(plan.claimed(lists, most))
	}
	d.exchanged(slots)
	d.goOn()
}

// goOn has the loop claim for the slots that a claim of some queues has left free, from the others.
func (d *dispatcher) goOn() {
	if d.room() > 0 && d.mayHaveMore() {
		signal(d.slotFree)
	}
}

// mayExchange decides for how many slots an exchange may claim: the group's own, and those that are free, which are reserved
// from now on. None means that it may not.
func (d *dispatcher) mayExchange(group []*pendingEnd) (own, free int) {
	if !d.mayHaveMore() || !d.lease.valid() {
		return 0, 0
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.accepting || d.reclaiming {
		return 0, 0
	}
	for _, p := range group {
		if !p.run.abandoned.Load() { // the slot of such a one stays taken
			own++
		}
	}
	if free = max(0, d.slots-len(d.runs)-d.reserved); own+free > 0 {
		d.exchanging, d.reserved = d.exchanging+1, d.reserved+free
	}
	return own, free
}

// handOver reserves the slots of a group that is about to leave them, for the tasks that were claimed for them.
func (d *dispatcher) handOver(own int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.reserved += own
}

// exchanged ends what mayExchange began.
func (d *dispatcher) exchanged(reserved int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.exchanging, d.reserved = d.exchanging-1, d.reserved-reserved
	if d.reclaiming && d.exchanging == 0 {
		signal(d.reconcile)
	}
}

// accept lets exchanges claim, or not any more.
func (d *dispatcher) accept(yes bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.accepting = yes
}
