package dispatch

import (
	"context"
	"slices"
	"time"

	"github.com/gorm-outbox/outbox/internal/dialect"
	"github.com/gorm-outbox/outbox/internal/store"
)

// loop claims and starts tasks until ctx is done. Whatever wakes it, the database decides what is
// due.
func (d *dispatcher) loop(ctx context.Context) {
	pause := time.Duration(0) // after a failure
	for {
		var why reason
		select {
		case <-ctx.Done():
			return
		case <-d.poller.nextDue.C:
			why = maybeDue
		case <-d.wakeups.signal:
		}
		why |= d.wakeups.take()
		if why == 0 {
			continue
		}
		if why&claimsUnknown != 0 {
			d.recovery.run(ctx)
			d.park(ctx) // also while every claim finds something else to do
			d.findDeserted(ctx)
		}
		if ctx.Err() != nil {
			return
		}
		asked, err := d.dispatch(ctx, why)
		if err != nil && ctx.Err() == nil {
			d.outages.failed("claim", err)
			d.claimer.found(nil)
			pause = min(max(2*pause, 100*time.Millisecond), 5*time.Second)
			d.poller.nextDue.Reset(pause)
		} else if err == nil && asked {
			d.outages.recovered("claim")
			pause = 0
		}
	}
}

// dispatch fills the free slots. For some reasons it polls first; for the others it only goes on
// where a claim came back full, or where tasks are known to be due. It reports whether it asked the
// database at all.
func (d *dispatcher) dispatch(ctx context.Context, why reason) (asked bool, err error) {
	if !d.lease.valid() {
		return false, nil
	}
	poll := why&(scanDue|maybeDue) != 0
	if poll {
		if wait := d.poller.tooSoon(d.slots.free() == 0); wait > 0 {
			d.poller.nextDue.Reset(wait)
			poll = false
		} else if err := d.poll(ctx); err != nil {
			return true, err
		}
	} else if why&knownDue == 0 && d.completer.busy() {
		return false, nil // it claims for the slots of its next group and for those that are free
	}
	if d.slots.free() == 0 || !d.claimer.mayHaveMore() {
		return poll, nil
	}
	total := 0
	for ctx.Err() == nil && d.lease.valid() {
		n, asked, err := d.claimer.claim(ctx, "")
		if err != nil {
			return true, err
		}
		if total += n; !asked || d.slots.free() == 0 || !d.claimer.mayHaveMore() {
			break
		}
	}
	if total > 0 {
		d.poller.passedOver = 0
	} else if !d.claimer.mayHaveMore() && poll {
		d.park(ctx)
		if pause, again := d.lookAgain(); again {
			d.poller.nextDue.Reset(pause)
		}
	}
	return true, nil
}

// expect has due tasks claimed from some partitions, without a poll before; without partitions,
// from any.
func (d *dispatcher) expect(partitions []dialect.Partition) {
	// Where a claim is several statements, one that finds nothing takes locks, and more than a
	// poll.
	if partitions == nil || !d.store.Dialect.OneStatement() {
		d.wake()
		return
	}
	if queues := d.cfg.Queues; len(queues) > 0 {
		partitions = slices.DeleteFunc(partitions, func(l dialect.Partition) bool { return !slices.Contains(queues, l.Queue) })
	}
	if len(partitions) > 0 {
		d.claimer.expect(partitions)
		d.wakeups.add(knownDue)
	}
}

// start runs claimed tasks, and returns how many they are.
func (d *dispatcher) start(list []store.Claimed) int {
	slices.SortStableFunc(list, func(a, b store.Claimed) int {
		if a.Task.Priority != b.Task.Priority {
			return a.Task.Priority - b.Task.Priority
		}
		return a.Task.RunAt.Compare(b.Task.RunAt)
	})
	got := len(list)
	if d.seen != nil {
		// Only a clock that stands still lets a task come back within one RunDue. It is kept until
		// the end: given back now, it would be claimed again and again.
		list = slices.DeleteFunc(list, func(c store.Claimed) bool {
			if d.seen[c.Task.ID] {
				d.held = append(d.held, *requeue(c.Task, 0, 1, 0, nil).requeue)
				return true
			}
			d.seen[c.Task.ID] = true
			return false
		})
	}
	runs := make([]*run, len(list))
	for i, c := range list {
		runs[i] = d.newRun(c)
	}
	d.slots.start(runs)
	d.cfg.Claimed(func(yield func(string) bool) {
		for _, r := range runs {
			if !yield(r.task.ID) {
				return
			}
		}
	})
	d.run(runs)
	return got
}
