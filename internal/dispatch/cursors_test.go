package dispatch

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/gorm-outbox/outbox/internal/dialect"
	"github.com/gorm-outbox/outbox/internal/store"
)

// due is a backlog after a poll that found some partitions, each named by its queue and its priority.
func due(lanes ...dialect.Lane) *cursors {
	b := new(cursors)
	b.found(lanes)
	return b
}

func lane(queue string, priority int) dialect.Lane {
	return dialect.Lane{Queue: queue, Priority: priority}
}

// rows are n claimed tasks of a partition.
func rows(l dialect.Lane, n int) (list []store.Claimed) {
	for i := range n {
		list = append(list, store.Claimed{Task: &store.Task{ID: fmt.Sprint(i), Queue: l.Queue, Priority: l.Priority, RunAt: time.Unix(1, 0)}})
	}
	return list
}

// A claim that was under way while a poll found something else must not say that nothing is left.
func TestBacklogBelievesTheLastPoll(t *testing.T) {
	b := due(someLane)
	old := b.take(10)
	b.found([]dialect.Lane{someLane}) // as after a wake-up
	b.claimed(old, 10, rows(someLane, 1))
	if turn := b.take(10); len(turn.marks) > 0 || len(turn.lanes) != 1 {
		t.Errorf("%v, cursors %v after a claim from before the poll", turn.lanes, turn.marks)
	}
	b.claimed(b.take(10), 10, rows(someLane, 10))
	if turn := b.take(10); turn.marks[someLane].ID != "9" {
		t.Errorf("cursors %v after a full claim from after it", turn.marks)
	}
	b.claimed(b.take(10), 10, rows(someLane, 9))
	if b.mayHaveMore() {
		t.Error("there may be more after a claim that was not full")
	}
}

// What was committed a moment ago may lie below the cursor, and a claim that was under way has not seen it.
func TestBacklogExpectsTasksBelowTheCursor(t *testing.T) {
	b := due(someLane)
	b.claimed(b.take(10), 10, rows(someLane, 10))
	old, other := b.take(10), lane("mail", 1)
	b.expect([]dialect.Lane{someLane, other})
	b.claimed(old, 10, nil)
	if turn := b.take(10); len(turn.marks) > 0 || !slices.Equal(turn.lanes, []dialect.Lane{someLane, other}) {
		t.Errorf("lanes %v, cursors %v", turn.lanes, turn.marks)
	}
}

func TestBacklogTurns(t *testing.T) {
	a1, a2, b1, b2, c1 := lane("a", 1), lane("a", 2), lane("b", 1), lane("b", 2), lane("c", 1)

	t.Run("a single queue is asked by priority", func(t *testing.T) {
		turn := due(a2, a1).take(10)
		if !slices.Equal(turn.lanes, []dialect.Lane{a1, a2}) || turn.share != 10 {
			t.Errorf("it asks %v for %d each", turn.lanes, turn.share)
		}
	})
	t.Run("queues share a claim, and each is the first once", func(t *testing.T) {
		b := due(a2, b1, b2, c1)
		for _, want := range [][]dialect.Lane{{a2, b1, c1}, {b1, c1, a2}, {c1, a2, b1}, {a2, b1, c1}} {
			if turn := b.take(10); !slices.Equal(turn.lanes, want) || turn.share != 4 {
				t.Errorf("it asks %v for %d each, instead of %v", turn.lanes, turn.share, want)
			}
		}
	})
	t.Run("a later priority waits until the earlier one is empty", func(t *testing.T) {
		b := due(a1, a2, b2)
		turn := b.take(4)
		b.claimed(turn, 4, append(rows(a1, 2), rows(b2, 2)...))
		if turn = b.take(4); !slices.Equal(turn.lanes, []dialect.Lane{b2, a1}) {
			t.Errorf("it asks %v, though there may be more of the first priority", turn.lanes)
		}
		b.claimed(turn, 4, rows(b2, 2))
		if turn = b.take(4); !slices.Equal(turn.lanes, []dialect.Lane{a2, b2}) {
			t.Errorf("it asks %v after the first priority was empty", turn.lanes)
		}
	})
	t.Run("a claim that is full says nothing of those that it did not reach", func(t *testing.T) {
		b := due(a1, b1, c1)
		b.claimed(b.take(6), 4, append(rows(a1, 2), rows(b1, 2)...)) // fewer slots than it was planned for
		if turn := b.take(6); !slices.Equal(turn.lanes, []dialect.Lane{b1, c1, a1}) {
			t.Errorf("left are %v", turn.lanes)
		}
	})
	t.Run("a full claim has emptied the first priorities of its queue", func(t *testing.T) {
		b := due(a1, a2)
		b.claimed(b.take(4), 4, append(rows(a1, 1), rows(a2, 3)...))
		if turn := b.take(4); !slices.Equal(turn.lanes, []dialect.Lane{a2}) {
			t.Errorf("left are %v", turn.lanes)
		}
	})
	t.Run("of many queues each claim asks the next ones", func(t *testing.T) {
		const queues, slots = 100, 20
		var lanes []dialect.Lane
		for i := range queues {
			lanes = append(lanes, lane(fmt.Sprintf("q%02d", i), 2))
		}
		b := due(lanes...)
		for round := range 2 * queues / slots {
			turn := b.take(slots)
			if first := slots * round % queues; !slices.Equal(turn.lanes, lanes[first:first+slots]) || turn.share != 1 {
				t.Fatalf("claim %d asks %v for %d each", round, turn.lanes, turn.share)
			}
		}
		if turn := b.take(1); len(turn.lanes) != minQueues || b.take(1).lanes[0] != lanes[1] {
			t.Errorf("a claim for one slot asks %v", turn.lanes)
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
		b.found([]dialect.Lane{a1, lane("aa", 1), c1})
		if turn := b.take(10); !slices.Equal(turn.lanes, []dialect.Lane{c1, a1, lane("aa", 1)}) {
			t.Errorf("it asks %v", turn.lanes)
		}
	})
	t.Run("each partition is looked at for parking", func(t *testing.T) {
		b, seen := due(a1, a2, b1, b2, c1), map[dialect.Lane]bool{}
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
