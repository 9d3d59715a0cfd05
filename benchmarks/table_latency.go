package main

import (
	"context"
	"fmt"
	"time"

	"github.com/hibiken/asynq"
	"github.com/riverqueue/river"
	"maragu.dev/goqite/jobs"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/pgnotify"
)

// rates are those of creation, in tasks a second.
var rates = []float64{50, 500}

// latency measures from a task's commit to the first line of its handler.
func (b *bench) latency(ctx context.Context) (*result, error) {
	waker := func() []outbox.Waker { return []outbox.Waker{pgnotify.New(pgnotify.Options{})} }
	var list []measure
	var open []contestant
	defer func() {
		for _, c := range open {
			c.close()
		}
	}()
	watched := func(name string, ours bool, look func(context.Context, watch) (latencies, error)) {
		list = append(list, measure{name: name, ours: ours, run: func(ctx context.Context) ([]float64, error) {
			var values []float64
			for _, rate := range rates {
				n := warm + int(rate*b.span(time.Duration(float64(time.Second)*(1+50/rate)), 500*time.Millisecond).Seconds())
				l, err := look(ctx, watch{rate: rate, n: n})
				if err != nil {
					return nil, err
				}
				values = append(values, l.at(.5), l.at(.99))
			}
			return values, nil
		}})
	}
	add := func(name string, ours bool, c creator, err error, dispatch dispatcher) error {
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		open = append(open, c)
		watched(name, ours, func(ctx context.Context, w watch) (latencies, error) { return w.fromCommit(ctx, c, dispatch) })
		if !ours {
			list[len(list)-1].rounds = 3 // what polls has latencies that differ little
		}
		return nil
	}
	server := func(name string) string {
		dsn, err := b.pg.database(ctx, name)
		if err != nil {
			b.host.Fatalf("%v", err)
		}
		return dsn
	}
	here, err := openOursOn(ctx, server("latency_here"), outbox.Options{}, conns)
	if err := add("outbox, same process", true, here, err, inProcess(here)); err != nil {
		return nil, err
	}
	dsn := server("latency_there")
	there, err := openOursOn(ctx, dsn, outbox.Options{Wakers: waker()}, conns)
	if err := add("outbox, another process, with pgnotify", true, there, err, elsewhere(there, job{Queue: "outbox", DSN: dsn, Conns: conns, Wake: true, Times: true})); err != nil {
		return nil, err
	}
	path, err := b.newFile("latency.db")
	if err != nil {
		return nil, err
	}
	file, err := openOursSQLite(ctx, path, outbox.Options{}, 1)
	if err := add("outbox, same process, SQLite", true, file, err, inProcess(file)); err != nil {
		return nil, err
	}
	watched("one INSERT and its COMMIT", false, func(ctx context.Context, w watch) (latencies, error) { return w.commits(ctx, here.pool) })
	watched("one INSERT and its COMMIT, SQLite", false, func(ctx context.Context, w watch) (latencies, error) { return w.commits(ctx, file.pool) })
	own, err := openRiverPgx(ctx, server("latency_river"), riverDefaults)
	if err := add("River, its own driver", false, own, err, inProcess(own)); err != nil {
		return nil, err
	}
	fast, err := openRiverPgx(ctx, server("latency_river_fast"), func(c *river.Config) { riverTuned(c, 100) })
	if err := add("River, its own driver, tuned", false, fast, err, inProcess(fast)); err != nil {
		return nil, err
	}
	sql, err := openRiverSQL(ctx, server("latency_river_sql"), riverDefaults)
	if err := add("River, database/sql", false, sql, err, inProcess(sql)); err != nil {
		return nil, err
	}
	if path, err = b.newFile("latency_goqite.db"); err != nil {
		return nil, err
	}
	q, err := openGoqite(ctx, path, jobs.NewRunnerOpts{Limit: 100, PollInterval: time.Millisecond})
	if err := add("goqite, SQLite, tuned", false, q, err, inProcess(q)); err != nil {
		return nil, err
	}
	addr, err := redisAddr(ctx)
	if err != nil {
		return nil, err
	}
	if addr != "" {
		a := openAsynq(addr, asynq.Config{})
		if err := add("asynq, Redis", false, a, nil, inProcess(a)); err != nil {
			return nil, err
		}
	}
	rows, err := b.interleave(ctx, b.rounds, list)
	if err != nil {
		return nil, err
	}
	r := &result{
		Notes: []string{"From the commit of a task's transaction to the first line of its handler, with default options and a dispatcher that has nothing else to do. " +
			"Tuned is River with a FetchCooldown of 2 ms and a FetchPollInterval of 10 ms, goqite with a PollInterval of 1 ms; " +
			"with goqite's default it does not keep up with 500/s. The peers have three rounds. SQLite has synchronous=FULL: the claim's own commit waits for the disk. " +
			"So does PostgreSQL's: one INSERT and its COMMIT, at the same rate and with nothing else going on, is what that takes at least."},
		Rows: rows,
	}
	for _, rate := range rates {
		r.Columns = append(r.Columns, column{fmt.Sprintf("%.0f/s, p50", rate), "ms"}, column{fmt.Sprintf("%.0f/s, p99", rate), "ms"})
	}
	for i, limit := range [][2]float64{{1, 5}, {1.5, 8}, {1, 5}} {
		for k := range r.Columns {
			r.Goals = append(r.Goals, goal{Text: rows[i].Name + ", " + r.Columns[k].Name, Samples: rows[i].Cells[k], Unit: "ms",
				Limit: limit[k%2], AtMost: true, Quick: b.quick})
		}
	}
	for _, alone := range rows[3:5] { // a commit by itself
		for k := range r.Columns {
			r.Goals = append(r.Goals, goal{Text: alone.Name + ", " + r.Columns[k].Name, Samples: alone.Cells[k], Unit: "ms", Info: true})
		}
	}
	return r, nil
}

// future measures from a start time to the first line of the handler.
func (b *bench) future(ctx context.Context) (*result, error) {
	dsn, err := b.pg.database(ctx, "future")
	if err != nil {
		return nil, err
	}
	onServer, err := openOursOn(ctx, dsn, outbox.Options{}, conns)
	if err != nil {
		return nil, err
	}
	defer onServer.close()
	path, err := b.newFile("future.db")
	if err != nil {
		return nil, err
	}
	onFile, err := openOursSQLite(ctx, path, outbox.Options{}, 1)
	if err != nil {
		return nil, err
	}
	defer onFile.close()
	if dsn, err = b.pg.database(ctx, "future_river"); err != nil {
		return nil, err
	}
	own, err := openRiverPgx(ctx, dsn, riverDefaults)
	if err != nil {
		return nil, err
	}
	defer own.close()
	of := func(name string, ours bool, c creator) measure {
		return measure{name: name, ours: ours, run: func(ctx context.Context) ([]float64, error) {
			l, err := watch{rate: 500, n: warm + b.tasks(100)}.fromStart(ctx, c, inProcess(c), 2*time.Second)
			if err != nil {
				return nil, err
			}
			return []float64{l.at(.5), l.at(.99)}, nil
		}}
	}
	rows, err := b.interleave(ctx, b.rounds, []measure{of("outbox", true, onServer), of("outbox, SQLite", true, onFile), of("River, its own driver", false, own)})
	if err != nil {
		return nil, err
	}
	return &result{
		Notes:   []string{fmt.Sprintf("%d tasks with start times spread over two seconds, default options. Nobody's ran early, or there were no figures.", b.tasks(100))},
		Columns: []column{{"p50", "ms"}, {"p99", "ms"}}, Rows: rows,
		Goals: []goal{
			{Text: "p99", Samples: rows[0].Cells[1], Unit: "ms", Limit: 5, AtMost: true, Quick: b.quick},
			{Text: "p99 on SQLite", Samples: rows[1].Cells[1], Unit: "ms", Limit: 5, AtMost: true, Quick: b.quick},
		},
	}, nil
}
