package main

import (
	"context"
	"fmt"
	"time"
)

// contestant works off tasks. Its handlers decode a number from the task's arguments, report it,
// and that is all.
type contestant interface {
	// load replaces whatever there is by n due tasks, numbered from 0.
	load(ctx context.Context, n int) error
	// start begins to dispatch; stop returns when nothing is dispatched any more.
	start(ctx context.Context, ran func(int)) (stop func() error, err error)
	// unfinished tells whether the database has tasks that have not finished.
	unfinished(ctx context.Context) (bool, error)
	// finished fails unless the database says of n tasks, and no others, that they have finished.
	finished(ctx context.Context, n int) error
	close() error
}

// workOff times one contestant from its start to the moment when the database says that all tasks
// have finished, and returns tasks a second.
func workOff(ctx context.Context, c contestant, n int, limit time.Duration) (rate float64, err error) {
	if err := c.load(ctx, n); err != nil {
		return 0, fmt.Errorf("load: %w", err)
	}
	t := newTally(n)
	begun := time.Now()
	stop, err := c.start(ctx, t.ran)
	if err != nil {
		return 0, fmt.Errorf("start: %w", err)
	}
	err = awaitFinished(ctx, c, t, limit)
	took := time.Since(begun)
	if stopErr := stop(); err == nil {
		err = stopErr
	}
	if err == nil {
		err = t.check() // after the stop: a second run may have come late
	}
	if err == nil {
		err = c.finished(ctx, n)
	}
	return float64(n) / took.Seconds(), err
}

func awaitFinished(ctx context.Context, c contestant, t *tally, limit time.Duration) error {
	deadline := time.Now().Add(limit)
	if err := t.wait(ctx, limit); err != nil {
		return err
	}
	for {
		if more, err := c.unfinished(ctx); err != nil || !more {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("all tasks had run, but not all had finished, after %v", limit)
		}
		time.Sleep(time.Millisecond)
	}
}
