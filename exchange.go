package outbox

import "context"

// Under load, whoever writes the outcomes of a group claims the next tasks for its slots in the same transaction: that is
// one commit a group instead of two, and a claim of a whole group instead of many of its parts. A slot still stays taken
// until its outcome is durable, for the claim becomes so with it.

// exchange writes a group of outcomes and claims for its slots and for those that are free. It leaves it to writeGroup
// when nothing is to be claimed, and after an error, which it returns: it may have taken effect nevertheless.
func (d *dispatcher) exchange(group []*pendingEnd) (written bool, err error) {
	limit := d.mayExchange(group)
	if limit == 0 {
		return false, nil
	}
	outcomes, requeued := split(group)
	plan, left, probe := d.plan("")
	ctx, cancel := context.WithTimeout(d.writeCtx, d.lockPatience())
	defer cancel()
	done, list, full, err := d.store.exchange(ctx, outcomes, requeued, plan, limit)
	if err != nil {
		d.mayHaveClaimed()
		d.exchanged(limit)
		return false, err
	}
	d.backlog.claimed(list, full || left, probe)
	d.durable(group, done)
	d.start(list)
	d.exchanged(limit)
	return true, nil
}

// mayExchange decides for how many slots an exchange may claim: those that are free, and the group's. They are reserved from
// now on. Zero means that it may not.
func (d *dispatcher) mayExchange(group []*pendingEnd) (limit int) {
	if !d.backlog.mayHaveMore() || !d.mayClaim() {
		return 0
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.accepting || d.reclaiming {
		return 0
	}
	limit = max(0, d.slots-len(d.runs)-d.reserved)
	for _, p := range group {
		if !p.run.abandoned.Load() { // the slot of such a one stays taken
			limit++
		}
	}
	if limit > 0 {
		d.exchanging, d.reserved = true, d.reserved+limit
	}
	return limit
}

// exchanged ends what mayExchange began.
func (d *dispatcher) exchanged(limit int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.exchanging, d.reserved = false, d.reserved-limit
	if d.reclaiming {
		poke(d.reconcile)
	}
}

// accept lets exchanges claim, or not any more.
func (d *dispatcher) accept(yes bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.accepting = yes
}
