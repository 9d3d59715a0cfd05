package main

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"gorm.io/driver/postgres"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-outbox/outbox"
)

// number is what every contestant's task carries.
type number struct {
	N int `json:"n"`
}

const benchFunc = "bench.run"

// ours is this library.
type ours struct {
	db     *gorm.DB
	pool   *sql.DB
	plugin *outbox.Plugin
	ran    atomic.Pointer[func(int)]
}

func openOurs(ctx context.Context, dialector gorm.Dialector, opts outbox.Options, conns int) (*ours, error) {
	db, err := gorm.Open(dialector, &gorm.Config{Logger: logger.Discard})
	if err != nil {
		return nil, err
	}
	o := &ours{db: db}
	if o.pool, err = db.DB(); err != nil {
		return nil, err
	}
	if conns > 0 {
		o.pool.SetMaxOpenConns(conns)
		o.pool.SetMaxIdleConns(conns)
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	o.plugin = outbox.New(opts)
	o.plugin.Handle(benchFunc, func(_ context.Context, a number) error {
		(*o.ran.Load())(a.N)
		return nil
	})
	if err := db.Use(o.plugin); err != nil {
		return nil, err
	}
	return o, o.plugin.Migrate(ctx)
}

func openOursOn(ctx context.Context, dsn string, opts outbox.Options, conns int) (*ours, error) {
	return openOurs(ctx, postgres.Open(dsn), opts, conns)
}

func openOursSQLite(ctx context.Context, path string, opts outbox.Options, conns int) (*ours, error) {
	return openOurs(ctx, sqlite.Open(sqliteDSN(path)), opts, conns)
}

// sqliteDSN is what docs/operations.md says, with a commit that survives a power cut.
func sqliteDSN(path string) string {
	return "file:" + path + "?_journal_mode=WAL&_busy_timeout=5000&_txlock=immediate&_synchronous=FULL"
}

func (o *ours) load(ctx context.Context, n int) error {
	if err := o.empty(ctx); err != nil {
		return err
	}
	if err := o.createMany(ctx, 0, n); err != nil {
		return err
	}
	return settle(ctx, o.db.Dialector.Name(), o.pool)
}

func (o *ours) empty(ctx context.Context) error {
	return emptyTables(ctx, o.db.Dialector.Name(), o.pool, "outbox_tasks", "outbox_history", "outbox_processes")
}

// createMany creates the tasks from to to-1 as an application would that has many.
func (o *ours) createMany(ctx context.Context, from, to int, opts ...outbox.CreateOption) error {
	for from < to {
		batch := make([]outbox.NewTask, min(10_000, to-from))
		for i := range batch {
			batch[i] = outbox.NewTask{Func: benchFunc, Args: number{from + i}, Options: opts}
		}
		from += len(batch)
		if _, err := outbox.CreateBatch(o.db.WithContext(ctx), batch...); err != nil {
			return err
		}
	}
	return nil
}

func (o *ours) start(ctx context.Context, ran func(int)) (func() error, error) {
	o.ran.Store(&ran)
	ctx, cancel := context.WithCancel(ctx)
	over := make(chan error, 1)
	go func() { over <- o.plugin.Run(ctx) }()
	return func() error {
		cancel()
		return <-over
	}, nil
}

func (o *ours) unfinished(ctx context.Context) (bool, error) {
	return exists(ctx, o.pool, "SELECT 1 FROM outbox_tasks")
}

func (o *ours) finished(ctx context.Context, n int) error {
	// Each number once, each at its first attempt, and nothing else.
	return expect(ctx, o.pool, n, "SELECT count(*) FROM outbox_history WHERE status = 'success' AND attempt = 1",
		"SELECT count(*) FROM outbox_history")
}

func (o *ours) sqlPool() *sql.DB { return o.pool }

func (o *ours) close() error { return o.pool.Close() }

func exists(ctx context.Context, pool *sql.DB, query string) (found bool, err error) {
	err = pool.QueryRowContext(ctx, "SELECT EXISTS ("+query+")").Scan(&found)
	return found, err
}

// expect fails unless each query counts n.
func expect(ctx context.Context, pool *sql.DB, n int, queries ...string) error {
	for _, q := range queries {
		var got int
		if err := pool.QueryRowContext(ctx, q).Scan(&got); err != nil {
			return err
		}
		if got != n {
			return fmt.Errorf("%s: %d instead of %d", q, got, n)
		}
	}
	return nil
}

// emptyTables leaves nothing of the round before, dead rows neither.
func emptyTables(ctx context.Context, database string, pool *sql.DB, tables ...string) error {
	statement := "TRUNCATE "
	if database == "sqlite" {
		statement = "DELETE FROM "
	}
	for _, t := range tables {
		if _, err := pool.ExecContext(ctx, statement+t); err != nil {
			return err
		}
	}
	return nil
}

// settle lets every round begin alike: with fresh statistics, and no checkpoint due that the round
// before has caused.
func settle(ctx context.Context, database string, pool *sql.DB) error {
	statements := []string{"VACUUM (ANALYZE)", "CHECKPOINT"}
	switch database {
	case "sqlite":
		statements = []string{"ANALYZE", "PRAGMA wal_checkpoint(TRUNCATE)"}
	case "mysql":
		statements = []string{"ANALYZE TABLE outbox_tasks, outbox_history", "FLUSH LOCAL TABLES"}
	}
	for _, s := range statements {
		if _, err := pool.ExecContext(ctx, s); err != nil {
			return fmt.Errorf("%s: %w", s, err)
		}
	}
	return nil
}

func (b *bench) enterOurs(name string, n int, opts outbox.Options, conns int) entrant {
	return entrant{name, true, n, b.onServer(func(ctx context.Context, dsn string) (contestant, error) {
		return openOursOn(ctx, dsn, opts, conns)
	})}
}

func (b *bench) enterOursSQLite(name string, n int, opts outbox.Options, conns int) entrant {
	return entrant{name, true, n, b.onFile(func(ctx context.Context, path string) (contestant, error) {
		return openOursSQLite(ctx, path, opts, conns)
	})}
}

func (o *ours) create(ctx context.Context, i int, at time.Time) error {
	var opts []outbox.CreateOption
	if !at.IsZero() {
		opts = append(opts, outbox.StartAt(at))
	}
	return o.db.WithContext(ctx).Transaction(func(tx *gorm.DB) error {
		_, err := outbox.Create(tx, benchFunc, number{i}, opts...)
		return err
	})
}
