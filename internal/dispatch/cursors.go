package dispatch

import (
	"cmp"
	"slices"
	"sync"

	"github.com/gorm-outbox/outbox/internal/dialect"
	"github.com/gorm-outbox/outbox/internal/store"
)

// backlog is what a dispatcher knows of the due tasks: the partitions that the last poll found,
// less those that a claim has emptied since, and how far claims have come in each. A partition is a
// queue at a priority. The loop and the writers of outcomes claim from it.
//
// Queues take turns, and priority orders the tasks of one queue. A claim asks the next queues for
// an equal share each, so its size bounds what it sends, whatever the number of queues, and a queue
// with many tasks does not keep another one waiting.
type cursors struct {
	mu     sync.Mutex
	firsts bool                // the database claims the first tasks of many queues faster than any more of each
	unused bool                // none of its functions are registered, so nothing is claimed from it
	due    []dialect.Partition // what the last poll found and what was expected since
	looked int                 // how many of them park has looked at
	ring   []*dueQueue         // queues with something to claim, in the order of their turns
	queues map[string]*dueQueue
	reads  int // polls and hints so far: what a claim says of a partition that was found later is out of date
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

// smallShare is what some claims of one task of each queue give rather than one claim, where that
// is one statement and a larger share a statement for each queue.
const smallShare = 8

// minQueues is how many queues even a small claim asks, because some may be empty.
const minQueues = 16

// found takes over what a poll has found. The cursors of earlier claims are gone with it: a late
// commit, a retry or a reschedule may have put a task below them. Queues keep their turns, and new
// ones come last.
func (b *cursors) found(partitions []dialect.Partition) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reads++
	b.due = partitions
	if b.unused {
		return
	}
	before := b.ring
	b.ring, b.queues = nil, make(map[string]*dueQueue, len(partitions))
	for _, l := range partitions {
		b.add(l)
	}
	added := b.ring
	b.ring = make([]*dueQueue, 0, len(added))
	kept := make(map[string]bool, len(before))
	for _, q := range before {
		if again := b.queues[q.name]; again != nil {
			b.ring, kept[q.name] = append(b.ring, again), true
		}
	}
	for _, q := range added {
		if !kept[q.name] {
			b.ring = append(b.ring, q)
		}
	}
}

// add puts a partition where its turn is; b.mu must be held. Its cursor, if it has one, is
// forgotten.
func (b *cursors) add(l dialect.Partition) {
	q := b.queues[l.Queue]
	if q == nil {
		q = &dueQueue{name: l.Queue}
		b.ring, b.queues[l.Queue] = append(b.ring, q), q
	}
	i, there := q.find(l.Priority)
	if !there {
		q.partitions = slices.Insert(q.partitions, i, duePartition{})
	}
	q.partitions[i] = duePartition{priority: l.Priority, read: b.reads}
}

func (q *dueQueue) find(priority int) (int, bool) {
	return slices.BinarySearchFunc(q.partitions, priority, func(p duePartition, priority int) int {
		return cmp.Compare(p.priority, priority)
	})
}

// expect adds partitions in which something may have become due since the last poll, below the
// cursors of earlier claims.
func (b *cursors) expect(partitions []dialect.Partition) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reads++
	if b.unused {
		return
	}
	if b.queues == nil {
		b.queues = map[string]*dueQueue{}
	}
	for _, l := range partitions {
		b.add(l)
	}
}

// size is how many partitions the last poll found due.
func (b *cursors) size() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.due)
}

// mayHaveMore reports whether there may be tasks that no claim has found yet.
func (b *cursors) mayHaveMore() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.ring) > 0
}

// turn is what one claim asks for.
type turn struct {
	partitions []dialect.Partition
	marks      map[dialect.Partition]dialect.Cursor
	share      int // at most so many rows of each partition
	read       int
}

// take gives a claim of up to limit rows the next queues and moves their turns on. Of a single
// queue it asks all priorities in their order, one after the other as each is empty. Of several
// queues it asks only the first priority of each: whatever share of a queue a claim takes, nothing
// of a later priority starts before a claim has found the earlier one empty.
func (b *cursors) take(limit int) (t turn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	t = turn{share: limit, read: b.reads}
	asked := b.ring[:min(len(b.ring), max(limit, minQueues))]
	for _, q := range asked {
		partitions := q.partitions
		if len(asked) > 1 {
			partitions = partitions[:1]
		}
		for _, p := range partitions {
			l := dialect.Partition{Queue: q.name, Priority: p.priority}
			t.partitions = append(t.partitions, l)
			if p.cursor != (dialect.Cursor{}) {
				if t.marks == nil {
					t.marks = map[dialect.Partition]dialect.Cursor{}
				}
				t.marks[l] = p.cursor
			}
		}
	}
	if n := len(b.ring); n > 1 && limit > 0 {
		served := min(limit, n)
		t.share = (limit + served - 1) / served
		if b.firsts && t.share <= smallShare {
			t.share = 1
		}
		next := 1 // where all are served, another one is the first
		if served < n {
			next = served
		}
		b.ring = slices.Concat(b.ring[next:], b.ring[:next])
	}
	return t
}

// claimed notes what a claim of up to limit rows has found: how far it has come, and which
// partitions it has emptied. Those come back with the next poll, if something is due in them.
func (b *cursors) claimed(t turn, limit int, list []store.Claimed) {
	b.mu.Lock()
	defer b.mu.Unlock()
	rows, last := make(map[dialect.Partition]int, len(t.partitions)), map[dialect.Partition]dialect.Cursor{}
	for _, c := range list {
		l, mark := dialect.Partition{Queue: c.Task.Queue, Priority: c.Task.Priority}, dialect.Cursor{RunAt: c.Task.RunAt, ID: c.Task.ID}
		if rows[l]++; c.Err == nil && last[l].Before(mark) {
			last[l] = mark
		}
	}
	// A full claim did not get to the partitions behind the last one that gave it something.
	reached := len(t.partitions)
	for full := len(list) >= limit; full && reached > 0 && rows[t.partitions[reached-1]] == 0; {
		reached--
	}
	gone := false
	for i, l := range t.partitions[:reached] {
		q := b.queues[l.Queue]
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
				delete(b.queues, q.name)
			}
		}
	}
	if gone {
		b.ring = slices.DeleteFunc(b.ring, func(q *dueQueue) bool { return len(q.partitions) == 0 })
	}
}

// atHeads are the next partitions, at most limit, at whose heads park is to look: all that were due
// have their turn.
func (b *cursors) atHeads(limit int) (partitions []dialect.Partition) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for range min(limit, len(b.due)) {
		b.looked = (b.looked + 1) % len(b.due)
		partitions = append(partitions, b.due[b.looked])
	}
	return partitions
}
