package main

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/gorm-outbox/outbox"
)

// planflip lets many tasks arrive at once where the planner believes that there is one.
func (b *bench) planflip(ctx context.Context) (*result, error) {
	n := b.tasks(50_000)
	dsn, err := b.pg.database(ctx, "planflip")
	if err != nil {
		return nil, err
	}
	o, err := openOursOn(ctx, dsn, outbox.Options{Concurrency: 1000}, conns)
	if err != nil {
		return nil, err
	}
	defer o.close()
	if dsn, err = b.pg.database(ctx, "planflip_river"); err != nil {
		return nil, err
	}
	own, err := openRiverPgx(ctx, dsn, riverFast)
	if err != nil {
		return nil, err
	}
	defer own.close()
	span := b.span(10*time.Second, 2*time.Second)
	normal := func(c contestant) func(context.Context) ([]float64, error) {
		return func(ctx context.Context) ([]float64, error) {
			rate, err := workOff(ctx, c, n, time.Minute)
			return []float64{rate}, err
		}
	}
	rows, err := b.interleave(ctx, b.rounds, []measure{
		{name: "outbox, planned for what is there", ours: true, run: normal(o)},
		{name: "outbox, planned for one row", ours: true, run: func(ctx context.Context) ([]float64, error) {
			rate, first, err := flood(ctx, o, n, time.Minute, func() error { return o.createMany(ctx, 0, n) })
			return []float64{rate, first}, err
		}},
		{name: "River, planned for what is there", rounds: 1, run: normal(own)},
		{name: "River, planned for one row", rounds: 1, run: func(ctx context.Context) ([]float64, error) {
			rate, first, err := flood(ctx, own, n, span, func() error {
				_, err := own.working.InsertManyFast(ctx, riverBatch(0, n))
				return err
			})
			return []float64{rate, first}, err
		}},
	})
	if err != nil {
		return nil, err
	}
	// What there is to be run in a second: at the normal rate all of it may be over sooner.
	full := make(cell, len(rows[0].Cells[0]))
	for i, rate := range rows[0].Cells[0] {
		full[i] = min(rate, float64(n))
	}
	return &result{
		Notes: []string{fmt.Sprintf("%s tasks arrive in one transaction, at a dispatcher that is running, after the queue was drained to one row and analysed. "+
			"The clock starts when they are committed. River is given %v, and one round.", format(float64(n)), span)},
		Columns: []column{{"rate", "tasks/s"}, {"first second", "tasks"}}, Rows: rows,
		Goals: []goal{
			b.ratio("planned for one row, of the normal rate", rows, 1, 0, .5),
			{Text: "in the first second, of the normal rate or of all", Samples: rows[1].Cells[1].over(full), Unit: "×", Limit: .5, Quick: b.quick},
		},
	}, nil
}

// flood starts the contestant on one task that is due next year, with the statistics of that, and
// then creates n. What has not run when the limit is over counts as not run.
func flood(ctx context.Context, c creator, n int, limit time.Duration, create func() error) (rate, first float64, err error) {
	if err := c.load(ctx, 0); err != nil {
		return 0, 0, err
	}
	t := newTally(n)
	var began atomic.Pointer[time.Time]
	var early atomic.Int64
	stop, err := c.start(ctx, func(i int) {
		if at := began.Load(); at == nil || time.Since(*at) < time.Second {
			early.Add(1)
		}
		t.ran(i)
	})
	if err != nil {
		return 0, 0, err
	}
	err = c.create(ctx, -1, time.Now().AddDate(1, 0, 0))
	if err == nil {
		err = analyse(ctx, c)
	}
	time.Sleep(500 * time.Millisecond)
	if err == nil {
		err = create()
	}
	now := time.Now()
	began.Store(&now)
	if err == nil {
		_ = t.wait(ctx, limit)
	}
	took := time.Since(now)
	if stopErr := stop(); err == nil {
		err = stopErr
	}
	ran := t.total.Load()
	if err == nil && ran == int64(n) {
		err = t.check()
	}
	return float64(ran) / took.Seconds(), float64(early.Load()), err
}

func analyse(ctx context.Context, c contestant) error {
	_, err := c.(pooled).sqlPool().ExecContext(ctx, "ANALYZE")
	return err
}
