package main

import (
	"context"
	"fmt"
	"time"

	"github.com/gorm-outbox/outbox"
)

const dueTasks = `
INSERT INTO outbox_tasks (id, func, args, queue, priority, run_at, state, attempt, uncounted, crashes, max_attempts, timeout_ms,
	repeatable, version, created_at)
SELECT gen_random_uuid()::text, $2, '{"n":0}', 'default', 2, now() - interval '1 hour' + i * interval '1 millisecond', 'pending', 0, 0, 0, 1, 0,
	false, 1, now()
FROM generate_series(1, $1::int) i`

// memory shows what a process with 100 slots has at its peak, with a short backlog and with a long
// one.
func (b *bench) memory(ctx context.Context) (*result, error) {
	var list []measure
	for i, n := range []int{10_000, b.tasks(1_000_000)} {
		dsn, err := b.pg.database(ctx, fmt.Sprintf("memory%d", i))
		if err != nil {
			return nil, err
		}
		o, err := openOursOn(ctx, dsn, outbox.Options{}, 4)
		if err != nil {
			return nil, err
		}
		defer o.close()
		list = append(list, measure{name: fmt.Sprintf("outbox, %s due tasks", format(float64(n))), ours: true, run: func(ctx context.Context) ([]float64, error) {
			var there int
			if err := o.pool.QueryRowContext(ctx, "SELECT count(*) FROM outbox_tasks").Scan(&there); err != nil {
				return nil, err
			}
			if _, err := o.pool.ExecContext(ctx, dueTasks, n-there, benchFunc); err != nil {
				return nil, err
			}
			p, err := spawn(ctx, job{Queue: "outbox", DSN: dsn, Slots: 100, Conns: conns})
			if err != nil {
				return nil, err
			}
			if err := p.begin(); err != nil {
				return nil, err
			}
			time.Sleep(b.span(2*time.Second, time.Second))
			u, err := p.end()
			if err != nil {
				return nil, err
			}
			return []float64{float64(u.rss) / 1e6, float64(p.ran.Load())}, nil
		}})
	}
	rows, err := b.interleave(ctx, min(b.rounds, 3), list)
	if err != nil {
		return nil, err
	}
	return &result{
		Notes:   []string{"The most that a process with 100 slots had in memory (VmHWM) while it worked for two seconds."},
		Columns: []column{{"RSS", "MB"}, {"tasks run", ""}}, Rows: rows,
		Goals: []goal{
			{Text: "with the long backlog", Samples: rows[1].Cells[0], Unit: "MB", Limit: 50, AtMost: true, Quick: b.quick},
			{Text: "of that with the short one", Samples: rows[1].Cells[0].over(rows[0].Cells[0]), Unit: "×", Limit: 1.25, AtMost: true, Quick: b.quick},
		},
	}, nil
}
