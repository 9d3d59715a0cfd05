package dispatch

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	"github.com/gorm-outbox/outbox/internal/dialect"
	"github.com/gorm-outbox/outbox/internal/store"
)

// claimer claims due tasks for free slots. It knows which partitions have some, and how far claims
// have come in each. The loop and the completer claim through it.
type claimer struct {
	store    *store.Store
	lease    *lease
	slots    *slots
	recovery *recovery
	limit    time.Duration             // of a statement
	start    func([]store.Claimed) int // starts the runs of what was claimed

	funcs, txFuncs, plainFuncs, repeatable []string // what this process can run

	cursors   cursors
	txCursors cursors      // those of transactional tasks, where these are claimed apart
	txApart   bool         // they are: one transaction at a time can write
	txTurns   atomic.Int32 // odd and even: which of the two is claimed first
	largest   largest
}

// found notes which partitions a poll has found due.
func (c *claimer) found(due []dialect.Partition) {
	c.cursors.found(due)
	c.txCursors.found(due)
}

// expect notes partitions in which tasks have become due since the last poll.
func (c *claimer) expect(due []dialect.Partition) {
	c.cursors.expect(due)
	c.txCursors.expect(due)
}

// mayHaveMore reports whether there may be due tasks that no claim has found yet.
func (c *claimer) mayHaveMore() bool { return c.cursors.mayHaveMore() || c.txCursors.mayHaveMore() }

// claim takes due tasks for the free slots and starts them; until is RunDue's time, or empty. It
// returns how many there were, and whether it asked the database: not without a free slot, or when
// nothing is known that could be claimed now. A claim that asks and gets nothing has emptied what
// it asked for.
func (c *claimer) claim(ctx context.Context, until string) (n int, asked bool, err error) {
	free := c.slots.reserve()
	if free == 0 {
		return 0, false, nil
	}
	defer c.slots.release(free)
	waiting, cancel := context.WithTimeout(ctx, c.limit)
	defer cancel()
	unlock, err := c.store.LockWriter(waiting)
	if err != nil {
		return 0, false, err
	}
	most := c.largest.of(free)
	plan := c.plan(until, most)
	if len(plan) == 0 {
		unlock()
		return 0, false, nil
	}
	// Not cut short by a shutdown: what has been claimed is to be known.
	limited, cancel := outlive(ctx, c.limit)
	defer cancel()
	lists, err := c.store.Claim(limited, plan.params(), most)
	unlock()
	c.largest.note(most, err)
	if err != nil {
		c.recovery.claimReplyLost()
		return 0, false, err
	}
	return c.start(plan.claimed(lists, most)), true, nil
}

// claimPlan is the claims that are made one after the other for some slots.
type claimPlan []plannedClaim

type plannedClaim struct {
	dialect.ClaimParams
	from *cursors
	turn turn
}

// plan says what to claim for up to limit slots: nothing when nothing is known to be due.
func (c *claimer) plan(until string, limit int) (plan claimPlan) {
	add := func(from *cursors, funcs []string, limit int) {
		t := from.take(limit)
		if len(t.partitions) == 0 {
			return
		}
		p := dialect.ClaimParams{Process: c.lease.owner(), Partitions: t.partitions, Cursors: t.cursors, Share: t.share, Funcs: funcs,
			Repeatable: c.repeatable, Limit: limit, Until: until}
		if until != "" {
			p.Cursors = nil // no other claim comes later
		}
		plan = append(plan, plannedClaim{p, from, t})
	}
	if !c.txApart {
		add(&c.cursors, c.funcs, limit)
		return plan
	}
	// At most one transactional task is claimed, in turn with the others.
	add(&c.cursors, c.plainFuncs, limit)
	if c.slots.inTransaction() {
		return plan
	}
	if add(&c.txCursors, c.txFuncs, 1); c.txTurns.Add(1)%2 == 0 {
		slices.Reverse(plan)
	}
	return plan
}

func (p claimPlan) params() []dialect.ClaimParams {
	list := make([]dialect.ClaimParams, len(p))
	for i := range p {
		list[i] = p[i].ClaimParams
	}
	return list
}

// claimed tells the cursors what the claims of a plan have found for up to limit slots, and returns
// all of it.
func (p claimPlan) claimed(lists [][]store.Claimed, limit int) (all []store.Claimed) {
	for i := range p {
		if limit := min(p[i].Limit, limit-len(all)); limit > 0 {
			p[i].from.claimed(p[i].turn, limit, lists[i])
		}
		all = append(all, lists[i]...)
	}
	return all
}

// largest bounds a claim where the database refuses a transaction that is too large: half as many
// tasks after that, then one more with each claim that succeeds. The zero value does not bound it.
type largest struct{ n atomic.Int64 }

func (l *largest) of(limit int) int {
	if n := int(l.n.Load()); n > 0 {
		return min(n, limit)
	}
	return limit
}

// note is called after a claim of up to limit tasks.
func (l *largest) note(limit int, err error) {
	if dialect.Classify(err) == dialect.Data {
		l.n.Store(int64(max(1, limit/2)))
	} else if n := l.n.Load(); err == nil && n > 0 {
		l.n.Store(n + 1)
	}
}
