package main

import (
	"context"
	"fmt"
	"time"

	"github.com/hibiken/asynq"
	"github.com/riverqueue/river"
	"maragu.dev/goqite/jobs"

	"github.com/gorm-outbox/outbox"
)

// defaults lets everybody work as they come out of the box. Rates are what count, so that the slow
// ones get fewer tasks.
func (b *bench) defaults(ctx context.Context) (*result, error) {
	entrants := []entrant{
		b.enterOurs("outbox", b.tasks(20_000), outbox.Options{}, 0),
		b.enterRiverPgx("River, its own driver", b.tasks(3_000), riverDefaults),
		b.enterRiverSQL("River, database/sql", b.tasks(3_000), riverDefaults),
		b.enterBare(10, b.tasks(20_000)),
		b.enterGue("gue", b.tasks(3_000), gueWorkers),
	}
	a, err := b.enterAsynq(ctx, "asynq, on Redis", b.tasks(10_000), asynq.Config{})
	if err != nil {
		return nil, err
	}
	entrants = append(entrants, a...)
	rows, err := b.workOffs(ctx, time.Minute, entrants)
	if err != nil {
		return nil, err
	}
	r := &result{
		Notes: []string{fmt.Sprintf("The options' zero values, and the pool's; where a number has no default it is that of the examples: River's MaxWorkers 100. gue has %d workers. "+
			"asynq's Redis keeps nothing on disk.", gueWorkers)},
		Columns: []column{{"rate", "tasks/s"}}, Rows: rows,
		Goals: []goal{b.ratio("of River with its own driver", rows, 0, 1, 10), b.ratio("of River through database/sql", rows, 0, 2, 10),
			comparison("the bare loop in groups of as many as we have slots, of River with its own driver", rows, 3, 1)},
	}
	for i := 4; i < len(rows); i++ {
		r.Goals = append(r.Goals, b.ratio("of "+rows[i].Name, rows, 0, i, 1))
	}
	return r, nil
}

// gueWorkers is a guess: gue says nothing, and each takes a connection.
const gueWorkers = 50

// sqlite compares on a file whose commits survive a power cut.
func (b *bench) sqlite(ctx context.Context) (*result, error) {
	const slots = 100
	rows, err := b.workOffs(ctx, time.Minute, []entrant{
		b.enterOursSQLite("outbox", b.tasks(50_000), outbox.Options{Concurrency: slots}, 0),
		b.enterBareSQLite(100, b.tasks(50_000)),
		b.enterBareSQLite(10, b.tasks(10_000)),
		b.enterRiverSQLite("River, its SQLite driver", b.tasks(4_000), func(c *river.Config) { riverTuned(c, slots) }),
		b.enterGoqite("goqite", b.tasks(4_000), jobs.NewRunnerOpts{Limit: slots, PollInterval: time.Millisecond}),
	})
	if err != nil {
		return nil, err
	}
	return &result{
		Notes: []string{"A file with a write-ahead log and synchronous=FULL, 100 slots; River's FetchCooldown 2 ms, goqite's PollInterval 1 ms, both with " +
			"one connection, as they ask for."},
		Columns: []column{{"rate", "tasks/s"}}, Rows: rows,
		Goals: []goal{
			b.ratio("of River's SQLite driver", rows, 0, 3, 15),
			b.ratio("of goqite", rows, 0, 4, 15),
			b.ratio("of the bare loop in groups of 100", rows, 0, 1, .6),
			comparison("the bare loop in groups of 100, of River's SQLite driver", rows, 1, 3),
		},
	}, nil
}
