package main

import (
	"context"
	"fmt"
	"time"

	"github.com/hibiken/asynq"
	"github.com/vgarvardt/gue/v5"

	"github.com/gorm-outbox/outbox"
)

// slots is River's concurrency where its documentation is after throughput, and so everybody's in
// that table.
const slots = 2000

// conns is the size of our pool: the dispatcher itself needs few.
const conns = 20

func (b *bench) workOffTable(ctx context.Context) (*result, error) {
	n := b.tasks(100_000)
	entrants := []entrant{
		b.enterOurs("outbox", n, outbox.Options{Concurrency: slots}, conns),
		b.enterBare(1000, n),
		b.enterBare(slots, n),
		b.enterRiverPgx("River, its own driver", n, riverFast),
		b.enterRiverSQL("River, database/sql", n, riverFast),
		b.enterGue("gue", n/20, gueWorkers, gue.WithPoolPollStrategy(gue.RunAtPollStrategy)),
	}
	a, err := b.enterAsynq(ctx, "asynq, on Redis", n/10, asynq.Config{Concurrency: slots})
	if err != nil {
		return nil, err
	}
	rows, err := b.workOffs(ctx, time.Minute, append(entrants, a...))
	if err != nil {
		return nil, err
	}
	return &result{
		Notes: []string{
			fmt.Sprintf("%s tasks that do nothing, one process, %s slots or workers; River's FetchCooldown 2 ms.", format(float64(n)), format(slots)),
			fmt.Sprintf("gue, with %d workers, which poll in the order of its index, gets a twentieth of the tasks and asynq a tenth.", gueWorkers),
		},
		Columns: []column{{"rate", "tasks/s"}}, Rows: rows,
		Goals: []goal{
			b.ratio("of River with its own driver", rows, 0, 3, 4),
			b.ratio("of River through database/sql", rows, 0, 4, 5),
			b.ratio("of the bare loop in groups of as many", rows, 0, 2, .85),
			b.ratio("of the bare loop in groups of 1,000", rows, 0, 1, .85),
			comparison("the bare loop in groups of as many, of River with its own driver", rows, 2, 3),
		},
	}, nil
}

// workOffSmall compares us with the bare loop where groups are smaller.
func (b *bench) workOffSmall(ctx context.Context) (*result, error) {
	var entrants []entrant
	sizes := []int{10, 100, 1000}
	number := map[int]int{10: b.tasks(20_000), 100: b.tasks(60_000), 1000: b.tasks(100_000)}
	for _, size := range sizes {
		n := number[size]
		entrants = append(entrants,
			b.enterOurs(fmt.Sprintf("outbox, %s slots", format(float64(size))), n, outbox.Options{Concurrency: size}, conns), b.enterBare(size, n))
	}
	rows, err := b.workOffs(ctx, time.Minute, entrants)
	if err != nil {
		return nil, err
	}
	r := &result{Columns: []column{{"rate", "tasks/s"}}, Rows: rows, Notes: []string{fmt.Sprintf(
		"%s tasks that do nothing; %s with 100 slots, %s with 10.", format(float64(number[1000])), format(float64(number[100])), format(float64(number[10])))}}
	for i, size := range sizes {
		r.Goals = append(r.Goals, b.ratio(fmt.Sprintf("%s slots, of the bare loop in groups of %[1]s", format(float64(size))), rows, 2*i, 2*i+1, .85))
	}
	return r, nil
}
