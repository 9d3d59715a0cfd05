package outbox

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/gorm-outbox/outbox/internal/dialect"
)

// probe asks what is due, and when the next task will be.
func (d *dispatcher) probe(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, d.statementLimit())
	defer cancel()
	found, err := d.store.d.Probe(limited, d.store.pool)
	if err != nil {
		return err
	}
	next := time.Duration(-1)
	d.lanes = d.lanes[:0]
	for _, l := range found {
		if len(d.p.opts.Queues) > 0 && !slices.Contains(d.p.opts.Queues, l.Queue) {
			continue
		}
		if l.Due {
			d.lanes = append(d.lanes, l.Lane)
		}
		if l.Next >= 0 && (next < 0 || l.Next < next) {
			next = l.Next
		}
	}
	if next >= 0 && next < time.Hour {
		d.nextDue.Reset(next)
	}
	d.order()
	return nil
}

// order sorts the lanes by priority, and among queues gives each its turn to be first.
func (d *dispatcher) order() {
	var queues []string
	for _, l := range d.lanes {
		if !slices.Contains(queues, l.Queue) {
			queues = append(queues, l.Queue)
		}
	}
	slices.Sort(queues)
	d.rotation++
	turn := func(l dialect.Lane) int { return (slices.Index(queues, l.Queue) + d.rotation) % len(queues) }
	slices.SortFunc(d.lanes, func(a, b dialect.Lane) int {
		if a.Priority != b.Priority {
			return a.Priority - b.Priority
		}
		return turn(a) - turn(b)
	})
}

// claim takes up to limit due tasks and starts them; until is RunDue's time, or empty. It returns how many there were, and
// whether there may be more.
func (d *dispatcher) claim(ctx context.Context, limit int, until string) (n int, more bool, err error) {
	params := dialect.ClaimParams{Process: d.processID(), Lanes: d.lanes, Funcs: d.funcs, Repeatable: d.repeatable, Limit: limit, Until: until}
	if d.txTurn == nil || len(d.txFuncs) == 0 {
		n, err = d.claimThese(ctx, params)
		return n, n >= limit, err
	}
	// One transaction at a time can write, so at most one transactional task is claimed, in turn with the others.
	for _, tx := range []bool{d.txFirst, !d.txFirst} {
		params.Funcs, params.Limit = d.plainFuncs, limit-n
		if tx {
			if d.inTx.Load() > 0 {
				more = true
				continue
			}
			params.Funcs, params.Limit = d.txFuncs, min(1, limit-n)
		}
		if params.Limit == 0 {
			more = true
			continue
		}
		got, err := d.claimThese(ctx, params)
		if err != nil {
			return n, more, err
		}
		n += got
		more = more || got == params.Limit
	}
	d.txFirst = !d.txFirst
	return n, more, nil
}

func (d *dispatcher) claimThese(ctx context.Context, params dialect.ClaimParams) (int, error) {
	if len(params.Funcs) == 0 {
		return 0, nil
	}
	// Not cut short by a shutdown: what has been claimed is to be known.
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), d.statementLimit())
	defer cancel()
	held := len(d.held)
	list, err := d.store.claim(limited, params)
	if err != nil {
		// The reply may be lost though the claim was committed: then tasks are ours that we do not know.
		d.doubt = time.Now().Add(d.p.opts.HeartbeatLimit)
		return 0, err
	}
	slices.SortStableFunc(list, func(a, b claimed) int {
		if a.task.Priority != b.task.Priority {
			return a.task.Priority - b.task.Priority
		}
		return a.task.RunAt.Compare(b.task.RunAt)
	})
	if d.seen != nil {
		// Only a clock that stands still lets a task come back within one RunDue. It is kept until the end: given back
		// now, it would be claimed again and again.
		list = slices.DeleteFunc(list, func(c claimed) bool {
			if d.seen[c.task.ID] {
				d.held = append(d.held, *requeue(c.task, 0, 1, 0, nil).requeue)
				return true
			}
			d.seen[c.task.ID] = true
			return false
		})
	}
	got := len(list) + len(d.held) - held
	runs := make([]*run, len(list))
	d.mu.Lock()
	for i, c := range list {
		runs[i] = d.newRun(c)
		d.runs[runs[i]] = struct{}{}
		if h := runs[i].handler; h != nil && h.tx {
			d.inTx.Add(1)
		}
	}
	d.mu.Unlock()
	d.p.wake.seen(runs)
	for _, r := range runs {
		go r.execute()
	}
	return got, nil
}

// park takes due tasks out of the claim's way that no live process can run.
func (d *dispatcher) park(ctx context.Context) {
	limited, cancel := context.WithTimeout(ctx, d.statementLimit())
	defer cancel()
	funcs, err := d.store.d.Park(limited, d.store.pool, d.lanes, maxRows)
	if err != nil {
		if ctx.Err() == nil {
			d.trouble.met("park", err)
		}
		return
	}
	d.trouble.over("park")
	for _, f := range funcs {
		if !d.unserved[f] {
			d.unserved[f] = true
			d.log.Warn("outbox: tasks parked, no live process has registered their function", "func", f)
		}
	}
}

// reconcileSoon lets the loop look for rows that this process owns without knowing, if there seem to be any; in the loop
// no claim is under way meanwhile. owned is how many it runs, as the table has it.
func (d *dispatcher) reconcileSoon(owned int64) {
	d.mu.Lock()
	d.strays = owned > int64(len(d.runs))
	d.mu.Unlock()
	poke(d.reconcile)
}

var errOutcomeLost = errors.New("its outcome could not be recorded")

// reclaim finds tasks that are claimed by this process without its knowing: the claim's reply was lost, or the outcome was
// refused or given up. The first never ran, and go back; the others did, and are interrupted.
func (d *dispatcher) reclaim(ctx context.Context) {
	d.mu.Lock()
	strays := d.strays
	d.strays = false
	d.mu.Unlock()
	if d.doubt.IsZero() && !strays {
		return
	}
	limited, cancel := context.WithTimeout(ctx, d.statementLimit())
	defer cancel()
	begun := time.Now()
	owned, err := d.store.owned(limited, d.processID())
	if err != nil {
		return
	}
	var outcomes []dialect.Outcome
	var back []dialect.Requeued
	d.mu.Lock()
	known := map[string]bool{}
	for r := range d.runs {
		known[r.task.ID] = true
	}
	for _, c := range owned {
		if known[c.task.ID] {
			continue
		}
		e := ending{giveBack: true}
		if d.hadRun[c.task.ID] {
			e = ending{reason: ReasonInterrupted, err: errOutcomeLost, text: errOutcomeLost.Error()}
		}
		if v := decide(c.task, e, d.backoff); v.outcome != nil {
			outcomes = append(outcomes, *v.outcome)
		} else {
			back = append(back, *v.requeue)
		}
	}
	d.mu.Unlock()
	if len(outcomes)+len(back) > 0 {
		done, err := d.store.write(limited, outcomes, back)
		if err != nil {
			d.trouble.met("reclaim", err)
			return
		}
		d.trouble.over("reclaim")
		if len(done) > 0 {
			d.log.Warn("outbox: claimed tasks without a run are given back or ended", "count", len(done))
			d.wake()
		}
	}
	// Not by the time alone: while the database was away, nobody could look.
	if begun.After(d.doubt) {
		d.doubt = time.Time{}
	}
}
