package main

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"

	"github.com/gorm-outbox/outbox"
)

// batch times the creation of many tasks at once.
func (b *bench) batch(ctx context.Context) (*result, error) {
	n := b.tasks(10_000)
	dsn, err := b.pg.database(ctx, "bench_batch")
	if err != nil {
		return nil, err
	}
	o, err := openOursOn(ctx, dsn, outbox.Options{}, 4)
	if err != nil {
		return nil, err
	}
	defer o.close()
	own, err := openRiverPgx(ctx, dsn, riverDefaults)
	if err != nil {
		return nil, err
	}
	defer own.close()
	conns, err := pgxpool.New(ctx, dsn)
	if err != nil {
		return nil, err
	}
	defer conns.Close()
	client, err := river.NewClient(riverpgxv5.New(conns), &river.Config{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	timed := func(name string, ours bool, table string, insert func(context.Context) error) measure {
		return measure{name: name, ours: ours, run: func(ctx context.Context) ([]float64, error) {
			// The first time prepares.
			var took time.Duration
			for range 2 {
				if err := emptyTables(ctx, "postgres", o.pool, table); err != nil {
					return nil, err
				}
				if err := settle(ctx, "postgres", o.pool); err != nil {
					return nil, err
				}
				begun := time.Now()
				if err := insert(ctx); err != nil {
					return nil, err
				}
				took = time.Since(begun)
				if err := expect(ctx, o.pool, n, "SELECT count(*) FROM "+table); err != nil {
					return nil, err
				}
			}
			return []float64{float64(n) / took.Seconds()}, nil
		}}
	}
	rows, err := b.interleave(ctx, b.rounds, []measure{
		timed("outbox, CreateBatch", true, "outbox_tasks", func(ctx context.Context) error { return o.createMany(ctx, 0, n) }),
		timed("bare INSERT … SELECT FROM unnest", false, "outbox_tasks", func(ctx context.Context) error { return bareInsert(ctx, conns, n) }),
		timed("GORM, CreateInBatches of 1,000", false, "outbox_tasks", func(ctx context.Context) error {
			return o.db.WithContext(ctx).CreateInBatches(models(n), 1000).Error
		}),
		timed("River, InsertMany", false, "river_job", func(ctx context.Context) error {
			_, err := client.InsertMany(ctx, riverBatch(0, n))
			return err
		}),
		timed("River, InsertManyFast (COPY)", false, "river_job", func(ctx context.Context) error {
			_, err := client.InsertManyFast(ctx, riverBatch(0, n))
			return err
		}),
	})
	if err != nil {
		return nil, err
	}
	return &result{
		Notes:   []string{fmt.Sprintf("%s tasks in one call and one transaction.", format(float64(n)))},
		Columns: []column{{"rate", "tasks/s"}}, Rows: rows,
		Goals: []goal{b.ratio("of the bare insert", rows, 0, 1, .6), b.ratio("of GORM's CreateInBatches", rows, 0, 2, 1)},
	}, nil
}

func riverBatch(from, n int) []river.InsertManyParams {
	batch := make([]river.InsertManyParams, n)
	for i := range batch {
		batch[i].Args = number{from + i}
	}
	return batch
}

// models are the rows as somebody would insert them who did without CreateBatch.
func models(n int) []*outbox.TaskModel {
	list := make([]*outbox.TaskModel, n)
	now := time.Now().UTC()
	for i := range list {
		list[i] = &outbox.TaskModel{
			ID: uuid.Must(uuid.NewV7()).String(), Func: benchFunc, Args: outbox.JSON(fmt.Sprintf(`{"n":%d}`, i)), Queue: "default", Priority: 2,
			RunAt: now, State: outbox.StatePending, MaxAttempts: 1, Version: 1, CreatedAt: now,
		}
	}
	return list
}

// bareInsert sends only what differs from row to row.
func bareInsert(ctx context.Context, conns *pgxpool.Pool, n int) error {
	ids, args := make([]string, n), make([]string, n)
	for i := range n {
		ids[i], args[i] = uuid.Must(uuid.NewV7()).String(), fmt.Sprintf(`{"n":%d}`, i)
	}
	return pgx.BeginFunc(ctx, conns, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `
INSERT INTO outbox_tasks (id, func, args, queue, priority, run_at, state, attempt, uncounted, crashes, max_attempts, timeout_ms,
	repeatable, version, created_at)
SELECT id, $3, args::json, 'default', 2, now(), 'pending', 0, 0, 0, 1, 0, false, 1, now() FROM unnest($1::text[], $2::text[]) AS r(id, args)`,
			ids, args, benchFunc)
		return err
	})
}
