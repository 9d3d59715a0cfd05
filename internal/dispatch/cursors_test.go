package dispatch

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/gorm-outbox/outbox/internal/dialect"
	"github.com/gorm-outbox/outbox/internal/store"
)

// due is a backlog after a poll that found some partitions, each named by its queue and its
// priority.
func due(partitions ...dialect.Partition) *cursors {
	b := new(cursors)
	b.found(partitions)
	return b
}

func partition(queue string, priority int) dialect.Partition {
	return dialect.Partition{Queue: queue, Priority: priority}
}

// rows are n claimed tasks of a partition.
func rows(l dialect.Partition, n int) (list []store.Claimed) {
	for i := range n {
		list = append(list, store.Claimed{Task: &store.Task{ID: fmt.Sprint(i), Queue: l.Queue, Priority: l.Priority, RunAt: time.Unix(1, 0)}})
	}
	return list
}

// A claim that was under way while a poll found something else must not say that nothing is left.
func TestCursorsBelieveTheLastPoll(t *testing.T) {
	b := due(somePartition)
	old := b.take(10)
	b.found([]dialect.Partition{somePartition}) // as after a wake-up
	b.claimed(old, 10, rows(somePartition, 1))
	if turn := b.take(10); len(turn.cursors) > 0 || len(turn.partitions) != 1 {
		t.Errorf("%v, cursors %v after a claim from before the poll", turn.partitions, turn.cursors)
	}
	b.claimed(b.take(10), 10, rows(somePartition, 10))
	if turn := b.take(10); turn.cursors[somePartition].ID != "9" {
		t.Errorf("cursors %v after a full claim from after it", turn.cursors)
	}
	b.claimed(b.take(10), 10, rows(somePartition, 9))
	if b.mayHaveMore() {
		t.Error("there may be more after a claim that was not full")
	}
}

// What was committed a moment ago may lie below the cursor, and a claim that was under way has not
// seen it.
func TestCursorsExpectTasksBelowTheCursor(t *testing.T) {
	b := due(somePartition)
	b.claimed(b.take(10), 10, rows(somePartition, 10))
	old, other := b.take(10), partition("mail", 1)
	b.expect([]dialect.Partition{somePartition, other})
	b.claimed(old, 10, nil)
	if turn := b.take(10); len(turn.cursors) > 0 || !slices.Equal(turn.partitions, []dialect.Partition{somePartition, other}) {
		t.Errorf("partitions %v, cursors %v", turn.partitions, turn.cursors)
	}
}

func TestCursorsTakeTurns(t *testing.T) {
	a1, a2, b1, b2, c1 := partition("a", 1), partition("a", 2), partition("b", 1), partition("b", 2), partition("c", 1)

	t.Run("a single queue is asked by priority", func(t *testing.T) {
		turn := due(a2, a1).take(10)
		if !slices.Equal(turn.partitions, []dialect.Partition{a1, a2}) || turn.share != 10 {
			t.Errorf("it asks %v for %d each", turn.partitions, turn.share)
		}
	})
	t.Run("queues share a claim, and each is the first once", func(t *testing.T) {
		b := due(a2, b1, b2, c1)
		for _, want := range [][]dialect.Partition{{a2, b1, c1}, {b1, c1, a2}, {c1, a2, b1}, {a2, b1, c1}} {
			if turn := b.take(10); !slices.Equal(turn.partitions, want) || turn.share != 4 {
				t.Errorf("it asks %v for %d each, instead of %v", turn.partitions, turn.share, want)
			}
		}
	})
	t.Run("a later priority waits until the earlier one is empty", func(t *testing.T) {
		b := due(a1, a2, b2)
		turn := b.take(4)
		b.claimed(turn, 4, append(rows(a1, 2), rows(b2, 2)...))
		if turn = b.take(4); !slices.Equal(turn.partitions, []dialect.Partition{b2, a1}) {
			t.Errorf("it asks %v, though there may be more of the first priority", turn.partitions)
		}
		b.claimed(turn, 4, rows(b2, 2))
		if turn = b.take(4); !slices.Equal(turn.partitions, []dialect.Partition{a2, b2}) {
			t.Errorf("it asks %v after the first priority was empty", turn.partitions)
		}
	})
	t.Run("a claim that is full says nothing of those that it did not reach", func(t *testing.T) {
		b := due(a1, b1, c1)
		b.claimed(b.take(6), 4, append(rows(a1, 2), rows(b1, 2)...)) // fewer slots than it was planned for
		if turn := b.take(6); !slices.Equal(turn.partitions, []dialect.Partition{b1, c1, a1}) {
			t.Errorf("left are %v", turn.partitions)
		}
	})
	t.Run("a claim that is full says nothing of several that it did not reach", func(t *testing.T) {
		d1 := partition("d", 1)
		b := due(a1, b1, c1, d1)
		b.claimed(b.take(6), 2, rows(a1, 2))
		if turn := b.take(6); !slices.Equal(turn.partitions, []dialect.Partition{b1, c1, d1, a1}) {
			t.Errorf("left are %v", turn.partitions)
		}
	})
	t.Run("a full claim has emptied the first priorities of its queue", func(t *testing.T) {
		b := due(a1, a2)
		b.claimed(b.take(4), 4, append(rows(a1, 1), rows(a2, 3)...))
		if turn := b.take(4); !slices.Equal(turn.partitions, []dialect.Partition{a2}) {
			t.Errorf("left are %v", turn.partitions)
		}
	})
	t.Run("of many queues each claim asks the next ones", func(t *testing.T) {
		const queues, slots = 100, 20
		var partitions []dialect.Partition
		for i := range queues {
			partitions = append(partitions, partition(fmt.Sprintf("q%02d", i), 2))
		}
		b := due(partitions...)
		for round := range 2 * queues / slots {
			turn := b.take(slots)
			if first := slots * round % queues; !slices.Equal(turn.partitions, partitions[first:first+slots]) || turn.share != 1 {
				t.Fatalf("claim %d asks %v for %d each", round, turn.partitions, turn.share)
			}
		}
		if turn := b.take(1); len(turn.partitions) != minQueues || b.take(1).partitions[0] != partitions[1] {
			t.Errorf("a claim for one slot asks %v", turn.partitions)
		}
	})
	t.Run("a small share is claimed one by one where that is faster", func(t *testing.T) {
		b := due(a1, b1, c1)
		b.firsts = true
		if few, many := b.take(3*smallShare), b.take(3*smallShare+1); few.share != 1 || many.share != smallShare+1 {
			t.Errorf("shares of %d and %d", few.share, many.share)
		}
	})
	t.Run("a poll leaves the turns as they are", func(t *testing.T) {
		b := due(a1, b1, c1)
		b.take(10)
		b.found([]dialect.Partition{a1, partition("aa", 1), c1})
		if turn := b.take(10); !slices.Equal(turn.partitions, []dialect.Partition{c1, a1, partition("aa", 1)}) {
			t.Errorf("it asks %v", turn.partitions)
		}
	})
	t.Run("each partition is looked at for parking", func(t *testing.T) {
		b, seen := due(a1, a2, b1, b2, c1), map[dialect.Partition]bool{}
		for range 3 {
			for _, l := range b.atHeads(2) {
				seen[l] = true
			}
		}
		if len(seen) != 5 || len(b.atHeads(100)) != 5 {
			t.Errorf("looked at %v", seen)
		}
	})
}
