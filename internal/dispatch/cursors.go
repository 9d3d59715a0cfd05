package dispatch

import (
	"cmp"
	"slices"
	"sync"

	"github.com/gorm-outbox/outbox/internal/dialect"
	"github.com/gorm-outbox/outbox/internal/store"
)

// cursors are the partitions that have due tasks, and the place in each at which the next claim
// begins. A partition is a queue at a priority. Polls and commits add partitions; a claim that
// empties one removes it.
//
// Queues take turns, and priority orders the tasks of one queue. A claim asks the next queues for
// an equal share each. So the size of a claim, and not the number of queues, bounds what it sends,
// and a queue with many tasks does not keep another queue waiting.
type cursors struct {
	mu     sync.Mutex
	firsts bool                // one task of each of many queues is claimed faster than several of each
	unused bool                // no function of these tasks is registered, so nothing is claimed
	due    []dialect.Partition // what the last poll found and what was expected since
	looked int                 // how many of them park has looked at
	ring   []*dueQueue         // queues with something to claim, in the order of their turns
	queues map[string]*dueQueue
	reads  int // polls and expected commits so far; a claim that began before knows nothing of them
}

type dueQueue struct {
	name       string
	partitions []duePartition // by priority
}

type duePartition struct {
	priority int
	read     int            // when it was found
	cursor   dialect.Cursor // the last task that was claimed from it
}

// smallShare: where a claim of one task of each queue is one statement, and a claim of several of
// each is a statement for each queue, a share up to this is claimed one task at a time.
const smallShare = 8

// minQueues is how many queues even a small claim asks, because some may be empty.
const minQueues = 16

// found replaces the partitions by those that a poll has found. Their cursors begin anew: a late
// commit, a retry or a reschedule may have put a task below them. Queues keep their turns, and new
// queues come last.
func (c *cursors) found(partitions []dialect.Partition) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reads++
	c.due = partitions
	if c.unused {
		return
	}
	before := c.ring
	c.ring, c.queues = nil, make(map[string]*dueQueue, len(partitions))
	for _, l := range partitions {
		c.add(l)
	}
	added := c.ring
	c.ring = make([]*dueQueue, 0, len(added))
	kept := make(map[string]bool, len(before))
	for _, q := range before {
		if again := c.queues[q.name]; again != nil {
			c.ring, kept[q.name] = append(c.ring, again), true
		}
	}
	for _, q := range added {
		if !kept[q.name] {
			c.ring = append(c.ring, q)
		}
	}
}

// add puts a partition into its queue, without a cursor. c.mu must be held.
func (c *cursors) add(l dialect.Partition) {
	q := c.queues[l.Queue]
	if q == nil {
		q = &dueQueue{name: l.Queue}
		c.ring, c.queues[l.Queue] = append(c.ring, q), q
	}
	i, there := q.find(l.Priority)
	if !there {
		q.partitions = slices.Insert(q.partitions, i, duePartition{})
	}
	q.partitions[i] = duePartition{priority: l.Priority, read: c.reads}
}

func (q *dueQueue) find(priority int) (int, bool) {
	return slices.BinarySearchFunc(q.partitions, priority, func(p duePartition, priority int) int {
		return cmp.Compare(p.priority, priority)
	})
}

// expect adds partitions in which a task has become due since the last poll. It may be below the
// cursors of earlier claims, so these begin anew.
func (c *cursors) expect(partitions []dialect.Partition) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reads++
	if c.unused {
		return
	}
	if c.queues == nil {
		c.queues = map[string]*dueQueue{}
	}
	for _, l := range partitions {
		c.add(l)
	}
}

// size is how many partitions the last poll found due.
func (c *cursors) size() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.due)
}

// mayHaveMore reports whether there may be tasks that no claim has found yet.
func (c *cursors) mayHaveMore() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.ring) > 0
}

// turn is what one claim asks for.
type turn struct {
	partitions []dialect.Partition
	cursors    map[dialect.Partition]dialect.Cursor
	share      int // limit of rows of each partition
	read       int
}

// take gives a claim of up to limit rows the next queues, and moves the turns on. Of a single queue
// the claim asks all priorities, in their order. Of several queues it asks only the first priority
// of each: no task of a later priority starts before a claim has found the earlier priority empty.
func (c *cursors) take(limit int) (t turn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t = turn{share: limit, read: c.reads}
	asked := c.ring[:min(len(c.ring), max(limit, minQueues))]
	for _, q := range asked {
		partitions := q.partitions
		if len(asked) > 1 {
			partitions = partitions[:1]
		}
		for _, p := range partitions {
			l := dialect.Partition{Queue: q.name, Priority: p.priority}
			t.partitions = append(t.partitions, l)
			if p.cursor != (dialect.Cursor{}) {
				if t.cursors == nil {
					t.cursors = map[dialect.Partition]dialect.Cursor{}
				}
				t.cursors[l] = p.cursor
			}
		}
	}
	if n := len(c.ring); n > 1 && limit > 0 {
		served := min(limit, n)
		t.share = (limit + served - 1) / served
		if c.firsts && t.share <= smallShare {
			t.share = 1
		}
		next := 1 // where all are served, the next claim begins with another queue
		if served < n {
			next = served
		}
		c.ring = slices.Concat(c.ring[next:], c.ring[:next])
	}
	return t
}

// claimed moves the cursors behind the rows of a claim of up to limit rows, and removes the
// partitions that the claim has emptied. The next poll brings them back if tasks are due in them.
func (c *cursors) claimed(t turn, limit int, list []store.Claimed) {
	c.mu.Lock()
	defer c.mu.Unlock()
	rows, last := make(map[dialect.Partition]int, len(t.partitions)), map[dialect.Partition]dialect.Cursor{}
	for _, c := range list {
		l, mark := dialect.Partition{Queue: c.Task.Queue, Priority: c.Task.Priority}, dialect.Cursor{RunAt: c.Task.RunAt, ID: c.Task.ID}
		if rows[l]++; c.Err == nil && last[l].Before(mark) {
			last[l] = mark
		}
	}
	// A full claim did not reach the partitions behind the last one of which it has a row.
	reached := len(t.partitions)
	for full := len(list) >= limit; full && reached > 0 && rows[t.partitions[reached-1]] == 0; {
		reached--
	}
	gone := false
	for i, l := range t.partitions[:reached] {
		q := c.queues[l.Queue]
		if q == nil {
			continue
		}
		at, there := q.find(l.Priority)
		if !there || q.partitions[at].read > t.read {
			continue
		}
		empty := rows[l] < t.share && (len(list) < limit || i < reached-1)
		if p := &q.partitions[at]; !empty && p.cursor.Before(last[l]) {
			p.cursor = last[l]
		}
		if empty {
			if q.partitions = slices.Delete(q.partitions, at, at+1); len(q.partitions) == 0 {
				gone = true
				delete(c.queues, q.name)
			}
		}
	}
	if gone {
		c.ring = slices.DeleteFunc(c.ring, func(q *dueQueue) bool { return len(q.partitions) == 0 })
	}
}

// atHeads are the next partitions, at most limit, at whose heads park looks. All due partitions
// have their turn.
func (c *cursors) atHeads(limit int) (partitions []dialect.Partition) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for range min(limit, len(c.due)) {
		c.looked = (c.looked + 1) % len(c.due)
		partitions = append(partitions, c.due[c.looked])
	}
	return partitions
}
