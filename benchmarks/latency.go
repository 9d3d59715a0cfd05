package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// creator is a contestant that also creates single tasks, each in a transaction of the
// application's.
type creator interface {
	contestant
	// create creates task i, due at once or at a time, and returns when the transaction has been
	// committed.
	create(ctx context.Context, i int, at time.Time) error
}

// latencies are sorted, in milliseconds.
type latencies []float64

func (l latencies) at(share float64) float64 { return l[min(int(share*float64(len(l))), len(l)-1)] }

// watch is what one round creates and sees.
type watch struct {
	rate float64 // tasks a second
	n    int
}

const warm = 20 // tasks that are not counted: connections are opened, statements prepared

// dispatcher is what runs the tasks, here or in another process: stop returns when each ran.
type dispatcher func(ctx context.Context, n int) (await func() error, stop func() ([]seen, error), err error)

// inProcess dispatches where the tasks are created.
func inProcess(c contestant) dispatcher {
	return func(ctx context.Context, n int) (func() error, func() ([]seen, error), error) {
		t := newTally(n)
		at := make([]time.Time, n)
		stop, err := c.start(ctx, func(i int) {
			at[i] = time.Now()
			t.ran(i)
		})
		if err != nil {
			return nil, nil, err
		}
		return func() error { return awaitFinished(ctx, c, t, 20*time.Second) }, func() ([]seen, error) {
			err := errors.Join(stop(), t.check(), c.finished(ctx, n))
			runs := make([]seen, n)
			for i := range runs {
				runs[i] = seen{i, at[i]}
			}
			return runs, err
		}, nil
	}
}

// elsewhere dispatches in a child process.
func elsewhere(c contestant, j job) dispatcher {
	return func(ctx context.Context, n int) (func() error, func() ([]seen, error), error) {
		p, err := spawn(ctx, j)
		if err == nil {
			err = p.begin()
		}
		if err != nil {
			return nil, nil, err
		}
		return func() error {
				ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
				defer cancel()
				return ranInAll(ctx, []*process{p}, int64(n))
			}, func() ([]seen, error) {
				_, err := p.end()
				t := newTally(n)
				for _, r := range p.runs {
					t.ran(r.i)
				}
				return p.runs, errors.Join(err, t.check(), c.finished(ctx, n))
			}, nil
	}
}

// fromCommit creates tasks at a rate while the dispatcher has nothing else to do, and returns how
// long each took from its commit to its handler's first line.
func (w watch) fromCommit(ctx context.Context, c creator, dispatch dispatcher) (latencies, error) {
	committed := make([]time.Time, w.n)
	runs, err := w.run(ctx, c, dispatch, func(i int) error {
		err := c.create(ctx, i, time.Time{})
		committed[i] = time.Now()
		return err
	})
	if err != nil {
		return nil, err
	}
	var l latencies
	for _, r := range runs {
		if r.i >= warm {
			l = append(l, float64(r.at.Sub(committed[r.i]))/1e6)
		}
	}
	slices.Sort(l)
	return l, nil
}

// commits takes the time of single INSERTs, each with its commit, at a rate: every claim holds one
// such wait for the disk.
func (w watch) commits(ctx context.Context, pool *sql.DB) (latencies, error) {
	if _, err := pool.ExecContext(ctx, "CREATE TABLE IF NOT EXISTS commits (body text)"); err != nil {
		return nil, err
	}
	took := make(latencies, w.n)
	err := w.paced(func(i int) error {
		begun := time.Now()
		_, err := pool.ExecContext(ctx, "INSERT INTO commits (body) VALUES ('a row')")
		took[i] = float64(time.Since(begun)) / 1e6
		return err
	})
	took = took[min(warm, w.n):]
	slices.Sort(took)
	return took, err
}

// fromStart creates tasks for later, and returns how long after its start time each ran.
func (w watch) fromStart(ctx context.Context, c creator, dispatch dispatcher, spread time.Duration) (latencies, error) {
	due := make([]time.Time, w.n)
	runs, err := w.run(ctx, c, dispatch, func(i int) error {
		due[i] = time.Now().Add(spread/4 + time.Duration(rand.Int64N(int64(spread)))).Truncate(time.Millisecond)
		return c.create(ctx, i, due[i])
	})
	if err != nil {
		return nil, err
	}
	var l latencies
	for _, r := range runs {
		if r.i >= warm {
			l = append(l, float64(r.at.Sub(due[r.i]))/1e6)
		}
	}
	slices.Sort(l)
	if l[0] < 0 {
		return nil, fmt.Errorf("a task ran %.3f ms before its start time", -l[0])
	}
	return l, nil
}

func (w watch) run(ctx context.Context, c creator, dispatch dispatcher, create func(i int) error) ([]seen, error) {
	if err := c.load(ctx, 0); err != nil {
		return nil, err
	}
	await, stop, err := dispatch(ctx, w.n)
	if err != nil {
		return nil, err
	}
	time.Sleep(500 * time.Millisecond) // whatever a dispatcher does when it starts
	if err = w.paced(create); err == nil {
		err = await()
	}
	runs, stopErr := stop()
	return runs, errors.Join(err, stopErr)
}

// paced calls f at the rate, however long each call takes.
func (w watch) paced(f func(i int) error) error {
	errs := make([]error, w.n)
	var wg sync.WaitGroup
	begun := time.Now()
	for i := range w.n {
		// Not in step with anybody's polling.
		time.Sleep(time.Until(begun.Add(time.Duration((float64(i) + rand.Float64()) / w.rate * float64(time.Second)))))
		wg.Go(func() { errs[i] = f(i) })
	}
	wg.Wait()
	return errors.Join(errs...)
}
