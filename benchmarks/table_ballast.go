package main

import (
	"context"
	"fmt"
	"time"

	"github.com/gorm-outbox/outbox"
)

// ballasted has tables that hold a lot beside what is due.
type ballasted struct {
	*ours
	begun time.Time
}

const ballastTasks = `
INSERT INTO outbox_tasks (id, func, args, queue, priority, run_at, state, attempt, uncounted, crashes, max_attempts, timeout_ms,
	repeatable, version, created_at)
SELECT gen_random_uuid()::text, $2, '{"n":0}', 'default', 2, now() + interval '1 year' + i * interval '1 second', 'pending', 0, 0, 0, 1, 0,
	false, 1, now()
FROM generate_series(1, $1::int) i`

const ballastHistory = `
INSERT INTO outbox_history (id, func, args, queue, priority, run_at, attempt, uncounted, crashes, max_attempts, timeout_ms, version,
	process_id, created_at, started_at, status, reason, finished_at)
SELECT gen_random_uuid()::text, $2, '{"n":0}', 'default', 2, t, 1, 0, 0, 1, 0, 2, 'a process', t, t, 'success', '', t
FROM (SELECT now() - interval '1 day' - i * interval '1 millisecond' AS t FROM generate_series(1, $1::int) i) r`

func (b *ballasted) load(ctx context.Context, n int) error {
	if err := b.createMany(ctx, 0, n); err != nil {
		return err
	}
	if err := settle(ctx, "postgres", b.pool); err != nil {
		return err
	}
	b.begun = time.Now()
	return nil
}

func (b *ballasted) unfinished(ctx context.Context) (bool, error) {
	return exists(ctx, b.pool, `SELECT 1 FROM outbox_tasks WHERE state = 'running' UNION ALL
		SELECT 1 FROM outbox_tasks WHERE state = 'pending' AND queue = 'default' AND priority = 2 AND run_at <= now()`)
}

func (b *ballasted) finished(ctx context.Context, n int) error {
	var got int
	err := b.pool.QueryRowContext(ctx, "SELECT count(*) FROM outbox_history WHERE status = 'success' AND attempt = 1 AND started_at > $1", b.begun).Scan(&got)
	if err == nil && got != n {
		err = fmt.Errorf("%d of %d tasks are in the history", got, n)
	}
	return err
}

// ballast compares full tables with empty ones.
func (b *bench) ballast(ctx context.Context) (*result, error) {
	n, weight := b.tasks(100_000), b.tasks(1_000_000)
	open := func(name string) (*ours, error) {
		dsn, err := b.pg.database(ctx, name)
		if err != nil {
			return nil, err
		}
		return openOursOn(ctx, dsn, outbox.Options{Concurrency: 1000}, conns)
	}
	empty, err := open("ballast_empty")
	if err != nil {
		return nil, err
	}
	defer empty.close()
	o, err := open("ballast_full")
	if err != nil {
		return nil, err
	}
	defer o.close()
	for _, statement := range []string{ballastTasks, ballastHistory} {
		if _, err := o.pool.ExecContext(ctx, statement, weight, benchFunc); err != nil {
			return nil, err
		}
	}
	of := func(name string, c creator) measure {
		return measure{name: name, ours: true, run: func(ctx context.Context) ([]float64, error) {
			rate, err := workOff(ctx, c, n, time.Minute)
			if err != nil {
				return nil, err
			}
			l, err := watch{rate: 50, n: warm + int(50*b.span(2*time.Second, 500*time.Millisecond).Seconds())}.fromCommit(ctx, c, inProcess(c))
			if err != nil {
				return nil, err
			}
			return []float64{rate, l.at(.5), l.at(.99)}, nil
		}}
	}
	rows, err := b.interleave(ctx, b.rounds, []measure{of("outbox, empty tables", empty), of("outbox, full tables", &ballasted{ours: o})})
	if err != nil {
		return nil, err
	}
	return &result{
		Notes: []string{fmt.Sprintf("%s tasks, 1,000 slots; full is %s tasks due next year, of the same function, queue and priority, and %[2]s rows of history. "+
			"Latency is from commit to handler, at 50/s.", format(float64(n)), format(float64(weight)))},
		Columns: []column{{"rate", "tasks/s"}, {"latency, p50", "ms"}, {"latency, p99", "ms"}}, Rows: rows,
		Goals: []goal{
			b.ratio("rate, of the empty tables'", rows, 1, 0, .95),
			{Text: "latency (p50), the empty tables' of the full ones'", Samples: rows[0].Cells[1].over(rows[1].Cells[1]), Unit: "×", Limit: .95, Quick: b.quick},
		},
	}, nil
}
