package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gorm-outbox/outbox"
)

// processes lets one and four child processes work off the same backlog.
func (b *bench) processes(ctx context.Context) (*result, error) {
	n := b.tasks(100_000)
	dsn, err := b.pg.database(ctx, "bench_processes")
	if err != nil {
		return nil, err
	}
	o, err := openOursOn(ctx, dsn, outbox.Options{}, 4)
	if err != nil {
		return nil, err
	}
	defer o.close()
	const slots = 500 // a process
	with := func(name, queue string, count int) measure {
		return measure{name: fmt.Sprintf("%s, processes: %d", name, count), ours: queue == "outbox", run: func(ctx context.Context) ([]float64, error) {
			if err := o.load(ctx, n); err != nil {
				return nil, err
			}
			before, err := deadlocks(ctx, o)
			if err != nil {
				return nil, err
			}
			rate, err := together(ctx, o, n, count, job{Queue: queue, DSN: dsn, Slots: slots, Conns: conns, Times: true})
			if err != nil {
				return nil, err
			}
			after, err := deadlocks(ctx, o)
			if err == nil && after != before {
				err = fmt.Errorf("%d deadlocks", after-before)
			}
			return []float64{rate}, err
		}}
	}
	const name, bare = "outbox", "two bare loops with marks, groups of 250"
	rows, err := b.interleave(ctx, b.rounds, []measure{with(name, "outbox", 1), with(name, "outbox", 4), with(bare, "bare", 1), with(bare, "bare", 4)})
	if err != nil {
		return nil, err
	}
	return &result{
		Notes: []string{
			fmt.Sprintf("%s tasks, %d slots a process, on one database. No task ran twice and the server saw no deadlock, or there were no figures.", format(float64(n)), slots),
			"Here the bare loops remember how far they have come, as we do: without that, one by itself walks over what it has claimed again and again.",
		},
		Columns: []column{{"rate of all", "tasks/s"}}, Rows: rows,
		Goals: []goal{
			b.ratio("four processes, of one", rows, 1, 0, .9),
			comparison("two bare loops with marks in each of four processes, of one", rows, 3, 2),
		},
	}, nil
}

func deadlocks(ctx context.Context, o *ours) (n int, err error) {
	err = o.pool.QueryRowContext(ctx, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()").Scan(&n)
	return n, err
}

// together is workOff for children.
func together(ctx context.Context, o contestant, n, count int, j job) (rate float64, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel() // ends the children too
	children := make([]*process, count)
	for i := range children {
		if children[i], err = spawn(ctx, j); err != nil {
			return 0, err
		}
	}
	begun := time.Now()
	for _, p := range children {
		if err := p.begin(); err != nil {
			return 0, err
		}
	}
	if err := ranInAll(ctx, children, int64(n)); err != nil {
		return 0, err
	}
	for more := true; more; {
		if more, err = o.unfinished(ctx); err != nil {
			return 0, err
		}
	}
	took := time.Since(begun)
	t := newTally(n)
	for _, p := range children {
		_, endErr := p.end()
		err = errors.Join(err, endErr)
		for _, r := range p.runs {
			t.ran(r.i)
		}
	}
	if err == nil {
		err = t.check()
	}
	if err == nil {
		err = o.finished(ctx, n)
	}
	return float64(n) / took.Seconds(), err
}

// ranInAll waits until the children have run n tasks.
func ranInAll(ctx context.Context, children []*process, n int64) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		var sum int64
		for _, p := range children {
			sum += p.ran.Load()
		}
		if sum >= n {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("only %d of %d tasks had run: %w", sum, n, ctx.Err())
		}
	}
}
