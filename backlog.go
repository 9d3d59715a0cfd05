package outbox

import (
	"maps"
	"slices"
	"sync"

	"github.com/gorm-outbox/outbox/internal/dialect"
)

// backlog is what a dispatcher knows of the due tasks: the lanes that a probe found, and how far its claims have come in
// each. The loop and the writer of outcomes both claim from it.
type backlog struct {
	mu       sync.Mutex
	lanes    []dialect.Lane // with tasks due at the last probe
	marks    map[dialect.Lane]dialect.Mark
	more     bool // there may be tasks that no claim has found yet
	probes   int  // so many there were
	rotation int
}

// found takes over what a probe has found. The marks of earlier claims are gone with it: a late commit, a retry or a
// reschedule may have put a task below them.
func (b *backlog) found(lanes []dialect.Lane) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lanes, b.marks, b.more = lanes, nil, len(lanes) > 0
	b.probes++
}

// expect adds lanes in which something may have become due since the last probe, below the marks of earlier claims.
func (b *backlog) expect(lanes []dialect.Lane) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range lanes {
		if delete(b.marks, l); !slices.Contains(b.lanes, l) {
			b.lanes = append(b.lanes, l)
		}
	}
	b.more = true
	b.probes++
}

// forget leaves it to the next probe what is due.
func (b *backlog) forget() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lanes, b.marks, b.more = nil, nil, false
	b.probes++
}

// any reports whether the last probe found something due.
func (b *backlog) any() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.lanes) > 0
}

func (b *backlog) mayHaveMore() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.more
}

// due are the lanes in the order in which to claim from them, by priority, and among queues each has its turn to be first,
// with the marks up to which claims have found them empty. They belong to a probe, which claimed wants to know.
func (b *backlog) due() (lanes []dialect.Lane, marks map[dialect.Lane]dialect.Mark, probe int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var queues []string
	for _, l := range b.lanes {
		if !slices.Contains(queues, l.Queue) {
			queues = append(queues, l.Queue)
		}
	}
	slices.Sort(queues)
	b.rotation++
	turn := func(l dialect.Lane) int { return (slices.Index(queues, l.Queue) + b.rotation) % len(queues) }
	slices.SortFunc(b.lanes, func(x, y dialect.Lane) int {
		if x.Priority != y.Priority {
			return x.Priority - y.Priority
		}
		return turn(x) - turn(y)
	})
	return slices.Clone(b.lanes), maps.Clone(b.marks), b.probes
}

// claimed notes how far a claim has come; more is whether it was full. What a probe has found since then is newer.
func (b *backlog) claimed(list []claimed, more bool, probe int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if probe != b.probes {
		return
	}
	b.more = more
	if b.marks == nil {
		b.marks = map[dialect.Lane]dialect.Mark{}
	}
	for _, c := range list {
		if c.err != nil {
			continue
		}
		lane, mark := dialect.Lane{Queue: c.task.Queue, Priority: c.task.Priority}, dialect.Mark{RunAt: c.task.RunAt, ID: c.task.ID}
		if b.marks[lane].Before(mark) {
			b.marks[lane] = mark
		}
	}
}
