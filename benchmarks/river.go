package main

import (
	"context"
	"database/sql"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver"
	"github.com/riverqueue/river/riverdriver/riverdatabasesql"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/riverdriver/riversqlite"
	"github.com/riverqueue/river/rivermigrate"
)

func (number) Kind() string { return "bench" }

// riverTuned is for throughput and latency, as far as River's documentation of Config goes.
func riverTuned(config *river.Config, workers int) {
	config.FetchCooldown = 2 * time.Millisecond
	config.FetchPollInterval = 10 * time.Millisecond
	config.Queues = map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: workers}}
}

// riverDefaults leaves everything as it is; MaxWorkers has no default, and 100 is what River's
// examples have.
func riverDefaults(config *river.Config) {
	config.Queues = map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: 100}}
}

// riverQueue is River with one of its drivers.
type riverQueue[TTx any] struct {
	driver   riverdriver.Driver[TTx]
	database string
	pool     *sql.DB                                            // to look at its table
	begin    func(ctx context.Context, f func(TTx) error) error // a transaction
	tune     func(*river.Config)
	closed   func() error
	working  *river.Client[TTx]
}

func openRiverPgx(ctx context.Context, dsn string, tune func(*river.Config)) (*riverQueue[pgx.Tx], error) {
	conns, err := pgxpool.New(ctx, dsn)
	if err != nil {
		return nil, err
	}
	pool, err := sql.Open("pgx", dsn)
	if err != nil {
		return nil, err
	}
	r := &riverQueue[pgx.Tx]{driver: riverpgxv5.New(conns), database: "postgres", pool: pool, tune: tune,
		begin: func(ctx context.Context, f func(pgx.Tx) error) error { return pgx.BeginFunc(ctx, conns, f) }}
	r.closed = func() error {
		conns.Close()
		return pool.Close()
	}
	return r, r.migrate(ctx)
}

// openRiverSQL is what a GORM application uses.
func openRiverSQL(ctx context.Context, dsn string, tune func(*river.Config)) (*riverQueue[*sql.Tx], error) {
	pool, err := sql.Open("pgx", dsn)
	if err != nil {
		return nil, err
	}
	pool.SetMaxIdleConns(20)
	r := &riverQueue[*sql.Tx]{driver: riverdatabasesql.New(pool), database: "postgres", pool: pool, tune: tune, begin: beginOn(pool), closed: pool.Close}
	return r, r.migrate(ctx)
}

func beginOn(pool *sql.DB) func(context.Context, func(*sql.Tx) error) error {
	return func(ctx context.Context, f func(*sql.Tx) error) error {
		tx, err := pool.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer tx.Rollback()
		if err := f(tx); err != nil {
			return err
		}
		return tx.Commit()
	}
}

func (r *riverQueue[TTx]) migrate(ctx context.Context) error {
	m, err := rivermigrate.New(r.driver, &rivermigrate.Config{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	_, err = m.Migrate(ctx, rivermigrate.DirectionUp, nil)
	return err
}

func (r *riverQueue[TTx]) client(ran func(int)) (*river.Client[TTx], error) {
	config := &river.Config{Logger: slog.New(slog.DiscardHandler), Workers: river.NewWorkers()}
	if ran != nil {
		r.tune(config)
	}
	river.AddWorker(config.Workers, river.WorkFunc(func(_ context.Context, job *river.Job[number]) error {
		ran(job.Args.N)
		return nil
	}))
	return river.NewClient(r.driver, config)
}

func (r *riverQueue[TTx]) load(ctx context.Context, n int) error {
	if err := emptyTables(ctx, r.database, r.pool, "river_job"); err != nil {
		return err
	}
	client, err := r.client(nil)
	if err != nil {
		return err
	}
	for from := 0; from < n; {
		batch := riverBatch(from, min(10_000, n-from))
		from += len(batch)
		if _, err := client.InsertManyFast(ctx, batch); err != nil {
			return err
		}
	}
	return settle(ctx, r.database, r.pool)
}

func (r *riverQueue[TTx]) start(ctx context.Context, ran func(int)) (func() error, error) {
	client, err := r.client(ran)
	if err != nil {
		return nil, err
	}
	if err := client.Start(ctx); err != nil {
		return nil, err
	}
	r.working = client
	return func() error { return client.Stop(ctx) }, nil
}

// create uses the client that works, which so learns at once of what it has inserted, as far as its
// driver lets it.
func (r *riverQueue[TTx]) create(ctx context.Context, i int, at time.Time) error {
	var opts *river.InsertOpts
	if !at.IsZero() {
		opts = &river.InsertOpts{ScheduledAt: at}
	}
	return r.begin(ctx, func(tx TTx) error {
		_, err := r.working.InsertTx(ctx, tx, number{i}, opts)
		return err
	})
}

func (r *riverQueue[TTx]) unfinished(ctx context.Context) (bool, error) {
	// Named states, so that River's index on them serves.
	return exists(ctx, r.pool, "SELECT 1 FROM river_job WHERE state IN ('available', 'running', 'retryable', 'scheduled', 'pending')")
}

func (r *riverQueue[TTx]) finished(ctx context.Context, n int) error {
	return expect(ctx, r.pool, n, "SELECT count(*) FROM river_job WHERE state = 'completed' AND attempt = 1",
		"SELECT count(*) FROM river_job")
}

func (r *riverQueue[TTx]) sqlPool() *sql.DB { return r.pool }

func (r *riverQueue[TTx]) close() error { return r.closed() }

func riverFast(config *river.Config) { riverTuned(config, slots) }

func (b *bench) enterRiverPgx(name string, n int, tune func(*river.Config)) entrant {
	return entrant{name, false, n, b.onServer(func(ctx context.Context, dsn string) (contestant, error) {
		return openRiverPgx(ctx, dsn, tune)
	})}
}

func (b *bench) enterRiverSQL(name string, n int, tune func(*river.Config)) entrant {
	return entrant{name, false, n, b.onServer(func(ctx context.Context, dsn string) (contestant, error) {
		return openRiverSQL(ctx, dsn, tune)
	})}
}

// openRiverSQLite has one connection, as River's driver asks for.
func openRiverSQLite(ctx context.Context, path string, tune func(*river.Config)) (*riverQueue[*sql.Tx], error) {
	pool, err := openSQLite(path)
	if err != nil {
		return nil, err
	}
	r := &riverQueue[*sql.Tx]{driver: riversqlite.New(pool), database: "sqlite", pool: pool, tune: tune, begin: beginOn(pool), closed: pool.Close}
	return r, r.migrate(ctx)
}

func (b *bench) enterRiverSQLite(name string, n int, tune func(*river.Config)) entrant {
	return entrant{name, false, n, b.onFile(func(ctx context.Context, path string) (contestant, error) {
		return openRiverSQLite(ctx, path, tune)
	})}
}
