package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/vgarvardt/gue/v5"
	"github.com/vgarvardt/gue/v5/adapter/pgxv5"
)

// gueQueue is gue with its own driver. It has no history: a job that is gone has finished.
type gueQueue struct {
	conns   *pgxpool.Pool
	pool    *sql.DB
	client  *gue.Client
	workers int
	options []gue.WorkerPoolOption
}

// gueTable is what gue's migrations/schema.sql makes.
const gueTable = `
CREATE TABLE gue_jobs (job_id text NOT NULL PRIMARY KEY, priority smallint NOT NULL, run_at timestamptz NOT NULL, job_type text NOT NULL,
	args bytea NOT NULL, error_count integer NOT NULL DEFAULT 0, last_error text, queue text NOT NULL, created_at timestamptz NOT NULL,
	updated_at timestamptz NOT NULL);
CREATE INDEX idx_gue_jobs_selector ON gue_jobs (queue, run_at, priority)`

// openGue has a connection a worker, for each holds a transaction while its job runs.
func openGue(ctx context.Context, dsn string, workers int, options ...gue.WorkerPoolOption) (*gueQueue, error) {
	config, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		return nil, err
	}
	config.MaxConns = int32(workers + 2)
	g := &gueQueue{workers: workers, options: options}
	if g.conns, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		return nil, err
	}
	if g.pool, err = sql.Open("pgx", dsn); err != nil {
		return nil, err
	}
	if g.client, err = gue.NewClient(pgxv5.NewConnPool(g.conns)); err != nil {
		return nil, err
	}
	_, err = g.conns.Exec(ctx, gueTable)
	return g, err
}

func (g *gueQueue) load(ctx context.Context, n int) error {
	if err := emptyTables(ctx, "postgres", g.pool, "gue_jobs"); err != nil {
		return err
	}
	for from := 0; from < n; {
		batch := make([]*gue.Job, min(1000, n-from))
		for i := range batch {
			args, err := json.Marshal(number{from + i})
			if err != nil {
				return err
			}
			batch[i] = &gue.Job{Type: "bench", Args: args}
		}
		from += len(batch)
		if err := g.client.EnqueueBatch(ctx, batch); err != nil {
			return err
		}
	}
	return settle(ctx, "postgres", g.pool)
}

func (g *gueQueue) start(ctx context.Context, ran func(int)) (func() error, error) {
	workers, err := gue.NewWorkerPool(g.client, gue.WorkMap{"bench": func(_ context.Context, j *gue.Job) error {
		var a number
		if err := json.Unmarshal(j.Args, &a); err != nil {
			return err
		}
		ran(a.N)
		return nil
	}}, g.workers, g.options...)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	over := make(chan error, 1)
	go func() { over <- workers.Run(ctx) }()
	return func() error {
		cancel()
		if err := <-over; err != nil && !errors.Is(err, context.Canceled) {
			return err
		}
		return nil
	}, nil
}

func (g *gueQueue) unfinished(ctx context.Context) (bool, error) {
	return exists(ctx, g.pool, "SELECT 1 FROM gue_jobs")
}

func (g *gueQueue) finished(ctx context.Context, _ int) error {
	return expect(ctx, g.pool, 0, "SELECT count(*) FROM gue_jobs")
}

func (g *gueQueue) close() error {
	g.conns.Close()
	return g.pool.Close()
}

func (b *bench) enterGue(name string, n, workers int, options ...gue.WorkerPoolOption) entrant {
	return entrant{name, false, n, b.onServer(func(ctx context.Context, dsn string) (contestant, error) {
		return openGue(ctx, dsn, workers, options...)
	})}
}
