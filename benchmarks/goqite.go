package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"time"

	"maragu.dev/goqite"
	"maragu.dev/goqite/jobs"
)

// goqiteQueue is goqite with its job runner, on SQLite. It has no history: a message that is gone
// has been processed.
type goqiteQueue struct {
	pool   *sql.DB
	queue  *goqite.Queue
	runner jobs.NewRunnerOpts
}

// goqiteTable is what goqite's schema_sqlite.sql makes.
const goqiteTable = `
create table goqite (
	id text primary key default ('m_' || lower(hex(randomblob(16)))),
	created text not null default (strftime('%Y-%m-%dT%H:%M:%fZ')), updated text not null default (strftime('%Y-%m-%dT%H:%M:%fZ')),
	queue text not null, body blob not null, timeout text not null default (strftime('%Y-%m-%dT%H:%M:%fZ')),
	received integer not null default 0, priority integer not null default 0) strict;
create trigger goqite_updated_timestamp after update on goqite begin
	update goqite set updated = strftime('%Y-%m-%dT%H:%M:%fZ') where id = old.id;
end;
create index goqite_queue_priority_created_idx on goqite (queue, priority desc, created)`

// openGoqite has one connection, as goqite's examples do. A message's timeout is long, so that no
// task runs twice because the machine is slow.
func openGoqite(ctx context.Context, path string, runner jobs.NewRunnerOpts) (*goqiteQueue, error) {
	pool, err := openSQLite(path)
	if err != nil {
		return nil, err
	}
	queue := goqite.New(goqite.NewOpts{DB: pool, Name: "bench", Timeout: 5 * time.Minute})
	runner.Queue, runner.Extend = queue, 5*time.Minute
	_, err = pool.ExecContext(ctx, goqiteTable)
	return &goqiteQueue{pool, queue, runner}, err
}

// openSQLite opens a file through one connection.
func openSQLite(path string) (*sql.DB, error) {
	pool, err := sql.Open("sqlite3", sqliteDSN(path))
	if err == nil {
		pool.SetMaxOpenConns(1)
	}
	return pool, err
}

func (g *goqiteQueue) load(ctx context.Context, n int) error {
	if err := emptyTables(ctx, "sqlite", g.pool, "goqite"); err != nil {
		return err
	}
	tx, err := g.pool.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	for i := range n {
		if err := g.createTx(ctx, tx, i); err != nil {
			return err
		}
	}
	if err := tx.Commit(); err != nil {
		return err
	}
	return settle(ctx, "sqlite", g.pool)
}

func (g *goqiteQueue) createTx(ctx context.Context, tx *sql.Tx, i int) error {
	body, err := json.Marshal(number{i})
	if err != nil {
		return err
	}
	_, err = jobs.CreateTx(ctx, tx, g.queue, "bench", goqite.Message{Body: body})
	return err
}

// create creates a message; goqite takes a delay where others take a time.
func (g *goqiteQueue) create(ctx context.Context, i int, at time.Time) error {
	if !at.IsZero() {
		return errors.ErrUnsupported
	}
	tx, err := g.pool.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if err := g.createTx(ctx, tx, i); err != nil {
		return err
	}
	return tx.Commit()
}

func (g *goqiteQueue) start(ctx context.Context, ran func(int)) (func() error, error) {
	runner := jobs.NewRunner(g.runner)
	runner.Register("bench", func(_ context.Context, m []byte) error {
		var a number
		if err := json.Unmarshal(m, &a); err != nil {
			return err
		}
		ran(a.N)
		return nil
	})
	ctx, cancel := context.WithCancel(ctx)
	over := make(chan struct{})
	go func() {
		defer close(over)
		runner.Start(ctx)
	}()
	return func() error {
		cancel()
		<-over
		return nil
	}, nil
}

func (g *goqiteQueue) unfinished(ctx context.Context) (bool, error) {
	return exists(ctx, g.pool, "SELECT 1 FROM goqite")
}

func (g *goqiteQueue) finished(ctx context.Context, _ int) error {
	return expect(ctx, g.pool, 0, "SELECT count(*) FROM goqite")
}

func (g *goqiteQueue) close() error { return g.pool.Close() }

func (b *bench) enterGoqite(name string, n int, runner jobs.NewRunnerOpts) entrant {
	return entrant{name, false, n, b.onFile(func(ctx context.Context, path string) (contestant, error) {
		return openGoqite(ctx, path, runner)
	})}
}
