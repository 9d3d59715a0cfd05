package main

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"
)

// tally counts the runs of each task, so that none can be lost or run twice unseen.
type tally struct {
	runs  []atomic.Int32
	total atomic.Int64
	full  chan struct{}
}

func newTally(n int) *tally { return &tally{runs: make([]atomic.Int32, n), full: make(chan struct{})} }

// ran is what every contestant's handler calls, and all that it does.
func (t *tally) ran(i int) {
	if i < 0 || i >= len(t.runs) {
		panic(fmt.Sprintf("task %d is none of this round's %d", i, len(t.runs)))
	}
	t.runs[i].Add(1)
	if t.total.Add(1) == int64(len(t.runs)) {
		close(t.full)
	}
}

// wait returns when as many runs were counted as there are tasks, or says how far they came.
func (t *tally) wait(ctx context.Context, limit time.Duration) error {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-t.full:
		return nil
	case <-timer.C:
		return fmt.Errorf("only %d of %d tasks had run after %v", t.total.Load(), len(t.runs), limit)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// check says whether each task ran once.
func (t *tally) check() error {
	never, again := 0, 0
	for i := range t.runs {
		switch n := t.runs[i].Load(); {
		case n == 0:
			never++
		case n > 1:
			again++
		}
	}
	if never+again > 0 {
		return fmt.Errorf("of %d tasks %d never ran and %d ran more than once", len(t.runs), never, again)
	}
	return nil
}
