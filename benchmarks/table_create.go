package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverdatabasesql"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
)

// order is the application's own row.
type order struct {
	ID       int64
	Customer string
	Cents    int64
}

const writers = 16

// create times transactions of one row of the application's, alone and with one task.
func (b *bench) create(ctx context.Context) (*result, error) {
	dsn, err := b.pg.database(ctx, "bench_create")
	if err != nil {
		return nil, err
	}
	// Nobody dispatches here: what the transaction costs is asked for.
	o, err := openOursOn(ctx, dsn, outbox.Options{}, writers+4)
	if err != nil {
		return nil, err
	}
	defer o.close()
	if err := o.db.AutoMigrate(&order{}); err != nil {
		return nil, err
	}
	own, err := openRiverPgx(ctx, dsn, riverDefaults)
	if err != nil {
		return nil, err
	}
	defer own.close()
	ways, closeWays, err := transactions(ctx, dsn, o)
	if err != nil {
		return nil, err
	}
	defer closeWays()

	span := b.span(time.Second, 200*time.Millisecond)
	var list []measure
	for _, w := range ways {
		list = append(list, measure{name: w.name, ours: w.ours, run: func(ctx context.Context) ([]float64, error) {
			var values []float64
			for _, n := range []int{1, writers} {
				if err := emptyTables(ctx, "postgres", o.pool, "orders", "outbox_tasks", "river_job"); err != nil {
					return nil, err
				}
				if err := settle(ctx, "postgres", o.pool); err != nil {
					return nil, err
				}
				rate, err := hammer(ctx, n, span, w.run)
				if err != nil {
					return nil, err
				}
				values = append(values, rate)
			}
			// Whatever was committed has its task.
			if w.table != "" {
				if err := sameCount(ctx, o.pool, "orders", w.table); err != nil {
					return nil, err
				}
			}
			return values, nil
		}})
	}
	rows, err := b.interleave(ctx, b.rounds, list)
	if err != nil {
		return nil, err
	}
	for i, w := range ways {
		for k := range 2 {
			rows[i].Cells = append(rows[i].Cells, rows[i].Cells[k].over(rows[w.alone].Cells[k]))
		}
	}
	compare := func(n int, what string, way int) goal {
		g := goal{Text: "1 writer, " + what + ", of the row alone", Samples: rows[way].Cells[2], Unit: "×", Info: true}
		if n > 1 {
			g.Text, g.Samples = fmt.Sprintf("%d writers, %s, of the row alone", n, what), rows[way].Cells[3]
		}
		return g
	}
	return &result{
		Notes: []string{fmt.Sprintf("Transactions a second, begin and commit included, with 1 and %d writers. The share is that of the row alone through the same driver.", writers)},
		Columns: []column{{"1 writer", "tx/s"}, {fmt.Sprintf("%d writers", writers), "tx/s"}, {"share, 1 writer", "×"},
			{fmt.Sprintf("share, %d writers", writers), "×"}},
		Rows: rows,
		Goals: []goal{
			{Text: "1 writer, of the row alone", Samples: rows[1].Cells[2], Unit: "×", Limit: .8, Quick: b.quick},
			{Text: fmt.Sprintf("%d writers, of the row alone", writers), Samples: rows[1].Cells[3], Unit: "×", Limit: .7, Quick: b.quick},
			compare(1, "a bare INSERT of the task's row", 2),
			compare(writers, "a bare INSERT of the task's row", 2),
			compare(1, "an INSERT of the task's values that returns its times", 3),
			compare(writers, "an INSERT of the task's values that returns its times", 3),
		},
	}, nil
}

// way is one way to write an order; alone is the way without a task that it is compared with.
type way struct {
	name  string
	ours  bool
	table string // of its tasks
	alone int
	run   func(context.Context) error
}

func transactions(ctx context.Context, dsn string, o *ours) ([]way, func(), error) {
	config, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		return nil, nil, err
	}
	config.MaxConns = writers + 4
	conns, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, nil, err
	}
	quiet := &river.Config{Logger: slog.New(slog.DiscardHandler)}
	throughSQL, err := river.NewClient(riverdatabasesql.New(o.pool), quiet)
	if err != nil {
		return nil, nil, err
	}
	throughPgx, err := river.NewClient(riverpgxv5.New(conns), quiet)
	if err != nil {
		return nil, nil, err
	}
	throughGORM := func(more func(*gorm.DB, *order) error) func(context.Context) error {
		return func(ctx context.Context) error {
			return o.db.WithContext(ctx).Transaction(func(tx *gorm.DB) error {
				row := &order{Customer: "somebody", Cents: 4200}
				if err := tx.Create(row).Error; err != nil {
					return err
				}
				return more(tx, row)
			})
		}
	}
	inPgx := func(more func(context.Context, pgx.Tx, int64) error) func(context.Context) error {
		return func(ctx context.Context) error {
			return pgx.BeginFunc(ctx, conns, func(tx pgx.Tx) error {
				var id int64
				err := tx.QueryRow(ctx, "INSERT INTO orders (customer, cents) VALUES ($1, $2) RETURNING id", "somebody", 4200).Scan(&id)
				if err != nil {
					return err
				}
				return more(ctx, tx, id)
			})
		}
	}
	return []way{
		{"GORM, the row alone", false, "", 0, throughGORM(func(*gorm.DB, *order) error { return nil })},
		{"GORM, outbox", true, "outbox_tasks", 0, throughGORM(func(tx *gorm.DB, row *order) error {
			_, err := outbox.Create(tx, benchFunc, number{int(row.ID)})
			return err
		})},
		{"GORM, a bare INSERT of the task's row", false, "outbox_tasks", 0, throughGORM(func(tx *gorm.DB, row *order) error {
			_, err := tx.Statement.ConnPool.ExecContext(tx.Statement.Context, bareTask, uuid.Must(uuid.NewV7()).String(), benchFunc,
				fmt.Sprintf(`{"n":%d}`, row.ID))
			return err
		})},
		{"GORM, an INSERT of the task's values that returns its times", false, "outbox_tasks", 0, throughGORM(func(tx *gorm.DB, row *order) error {
			var runAt, createdAt time.Time
			return tx.Statement.ConnPool.QueryRowContext(tx.Statement.Context, wholeTask, uuid.Must(uuid.NewV7()).String(), benchFunc,
				fmt.Sprintf(`{"n":%d}`, row.ID), "default", 2, 0, 1, 0).Scan(&runAt, &createdAt)
		})},
		{"GORM, River through database/sql", false, "river_job", 0, throughGORM(func(tx *gorm.DB, row *order) error {
			_, err := throughSQL.InsertTx(tx.Statement.Context, tx.Statement.ConnPool.(*sql.Tx), number{int(row.ID)}, nil)
			return err
		})},
		{"pgx, the row alone", false, "", 5, inPgx(func(context.Context, pgx.Tx, int64) error { return nil })},
		{"pgx, River with its own driver", false, "river_job", 5, inPgx(func(ctx context.Context, tx pgx.Tx, id int64) error {
			_, err := throughPgx.InsertTx(ctx, tx, number{int(id)}, nil)
			return err
		})},
	}, conns.Close, nil
}

// bareTask is as little as can be said of a task.
const bareTask = `
INSERT INTO outbox_tasks (id, func, args, queue, priority, run_at, state, attempt, uncounted, crashes, max_attempts, timeout_ms,
	repeatable, version, created_at)
VALUES ($1, $2, $3, 'default', 2, now(), 'pending', 0, 0, 0, 1, 0, false, 1, now())`

// wholeTask says what Create has been told, and tells what it answers.
const wholeTask = `
INSERT INTO outbox_tasks (id, func, args, queue, priority, run_at, state, attempt, uncounted, crashes, max_attempts, timeout_ms,
	repeatable, version, created_at)
VALUES ($1, $2, $3, $4, $5, statement_timestamp() + $6::bigint * interval '1 microsecond', 'pending', 0, 0, 0, $7, $8, false, 1,
	statement_timestamp())
RETURNING run_at, created_at`

// hammer calls f from n goroutines for a while and returns calls a second.
func hammer(ctx context.Context, n int, span time.Duration, f func(context.Context) error) (float64, error) {
	if err := f(ctx); err != nil { // prepares
		return 0, err
	}
	var calls atomic.Int64
	errs := make([]error, n)
	var wg sync.WaitGroup
	begun := time.Now()
	for i := range n {
		wg.Go(func() {
			for time.Since(begun) < span && errs[i] == nil {
				errs[i] = f(ctx)
				calls.Add(1)
			}
		})
	}
	wg.Wait()
	return float64(calls.Load()) / time.Since(begun).Seconds(), errors.Join(errs...)
}

func sameCount(ctx context.Context, pool *sql.DB, table, other string) error {
	var n int
	if err := pool.QueryRowContext(ctx, "SELECT count(*) FROM "+table).Scan(&n); err != nil {
		return err
	}
	return expect(ctx, pool, n, "SELECT count(*) FROM "+other)
}
