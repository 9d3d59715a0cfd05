package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"gorm.io/driver/mysql"

	"github.com/gorm-outbox/outbox"
)

// bareMySQL is bare on MariaDB: one connection, two transactions of two statements a group. Each
// claim begins where the last one ended, for what is gone stays in the index until the server
// purges it.
type bareMySQL struct {
	*ours
	conn  *sql.DB
	group int
}

func openBareMySQL(ctx context.Context, dsn string, group int) (*bareMySQL, error) {
	o, err := openOurs(ctx, mysql.Open(dsn), outbox.Options{}, 0)
	if err != nil {
		return nil, err
	}
	conn, err := sql.Open("mysql", dsn)
	if err != nil {
		return nil, err
	}
	conn.SetMaxOpenConns(1)
	return &bareMySQL{o, conn, group}, nil
}

const bareFindMySQL = "SELECT id, args, run_at FROM outbox_tasks FORCE INDEX (idx_outbox_tasks_claim)" + `
WHERE state = 'pending' AND queue = 'default' AND priority = 2 AND run_at <= UTC_TIMESTAMP(6)
	AND (run_at = CAST(? AS DATETIME(6)) AND id > ? OR run_at > CAST(? AS DATETIME(6)))
ORDER BY run_at, id LIMIT ? FOR UPDATE SKIP LOCKED`

const bareOfMySQL = " JSON_TABLE(?, '$[*]' COLUMNS (id varchar(36) PATH '$')) o STRAIGHT_JOIN outbox_tasks t FORCE INDEX (PRIMARY) ON t.id = o.id"

const bareClaimMySQL = "UPDATE" + bareOfMySQL + `
SET t.state = 'running', t.attempt = t.attempt + 1, t.version = t.version + 1, t.started_at = UTC_TIMESTAMP(6)`

const bareCopyMySQL = "INSERT INTO outbox_history (id, func, args, `key`, queue, priority, run_at, attempt, uncounted, crashes, max_attempts," + `
	timeout_ms, version, process_id, rerun_of, errors, meta, created_at, started_at, status, reason, finished_at)` +
	"\nSELECT t.id, t.func, t.args, t.`key`, t.queue, t.priority, t.run_at, t.attempt, t.uncounted, t.crashes, t.max_attempts," + `
	t.timeout_ms, t.version, t.process_id, t.rerun_of, t.errors, t.meta, t.created_at, t.started_at, 'success', '', UTC_TIMESTAMP(6)
FROM` + bareOfMySQL

func (b *bareMySQL) start(ctx context.Context, ran func(int)) (func() error, error) {
	ctx, cancel := context.WithCancel(ctx)
	over := make(chan error, 1)
	go func() {
		err := b.loop(ctx, ran)
		if ctx.Err() != nil { // which a transaction does not always say
			err = nil
		}
		over <- err
	}()
	return func() error {
		cancel()
		return <-over
	}, nil
}

// loop ends when nothing is due.
func (b *bareMySQL) loop(ctx context.Context, ran func(int)) error {
	last, lastAt := "", time.Unix(0, 0)
	for {
		var ids []string
		err := b.inTx(ctx, func(tx *sql.Tx) error {
			rows, err := tx.QueryContext(ctx, bareFindMySQL, lastAt, last, lastAt, b.group)
			if err != nil {
				return err
			}
			defer rows.Close()
			for rows.Next() {
				var args []byte
				if err := rows.Scan(&last, &args, &lastAt); err != nil {
					return err
				}
				ids = append(ids, last)
				var a number
				if err := json.Unmarshal(args, &a); err != nil {
					return err
				}
				ran(a.N)
			}
			if err := rows.Err(); err != nil || len(ids) == 0 {
				return err
			}
			return b.change(ctx, tx, bareClaimMySQL, ids)
		})
		if err != nil || len(ids) == 0 {
			return err
		}
		if err := b.inTx(ctx, func(tx *sql.Tx) error {
			return errors.Join(b.change(ctx, tx, bareCopyMySQL, ids), b.change(ctx, tx, "DELETE t FROM"+bareOfMySQL, ids))
		}); err != nil {
			return err
		}
	}
}

func (b *bareMySQL) inTx(ctx context.Context, f func(*sql.Tx) error) error {
	tx, err := b.conn.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if err := f(tx); err != nil {
		return err
	}
	return tx.Commit()
}

// change runs a statement that is to change as many rows as there are ids.
func (b *bareMySQL) change(ctx context.Context, tx *sql.Tx, query string, ids []string) error {
	list, err := json.Marshal(ids)
	if err != nil {
		return err
	}
	done, err := tx.ExecContext(ctx, query, string(list))
	if err != nil {
		return err
	}
	if n, err := done.RowsAffected(); err != nil || n != int64(len(ids)) {
		return errors.Join(err, fmt.Errorf("%d of %d tasks changed: %s", n, len(ids), query))
	}
	return nil
}

func (b *bareMySQL) close() error { return errors.Join(b.conn.Close(), b.ours.close()) }

func (b *bench) enterBareMySQL(group, n int) entrant {
	return entrant{fmt.Sprintf("bare loop on MariaDB, groups of %s", format(float64(group))), false, n, b.newOn(onMariaDB, func(ctx context.Context, dsn string) (contestant, error) {
		return openBareMySQL(ctx, dsn, group)
	})}
}
