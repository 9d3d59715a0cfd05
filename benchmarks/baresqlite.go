package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/gorm-outbox/outbox"
)

// bareSQLite is bare on SQLite: one connection, two transactions a group.
type bareSQLite struct {
	*ours
	conn  *sql.DB
	group int
}

func openBareSQLite(ctx context.Context, path string, group int) (*bareSQLite, error) {
	o, err := openOursSQLite(ctx, path, outbox.Options{}, 0)
	if err != nil {
		return nil, err
	}
	conn, err := openSQLite(path)
	return &bareSQLite{o, conn, group}, err
}

const bareClaimSQLite = `
UPDATE outbox_tasks SET state = 'running', attempt = attempt + 1, version = version + 1,
	started_at = strftime('%Y-%m-%d %H:%M:%f', 'now') || '000+00:00'
WHERE rowid IN (
	SELECT rowid FROM outbox_tasks
	WHERE state = 'pending' AND queue = 'default' AND priority = 2
		AND run_at <= strftime('%Y-%m-%d %H:%M:%f', 'now') || '000+00:00'
	ORDER BY run_at LIMIT ?1)
RETURNING rowid, args`

const bareCopySQLite = `
INSERT INTO outbox_history (id, func, args, key, queue, priority, run_at, attempt, uncounted, crashes, max_attempts, timeout_ms,
	version, process_id, rerun_of, errors, meta, created_at, started_at, status, reason, result, error, finished_at)
SELECT id, func, args, key, queue, priority, run_at, attempt, uncounted, crashes, max_attempts, timeout_ms,
	version, process_id, rerun_of, errors, meta, created_at, started_at, 'success', '', NULL, NULL,
	strftime('%Y-%m-%d %H:%M:%f', 'now') || '000+00:00'
FROM outbox_tasks WHERE rowid IN (SELECT value FROM json_each(?1))`

func (b *bareSQLite) start(ctx context.Context, ran func(int)) (func() error, error) {
	claim, err := b.conn.PrepareContext(ctx, bareClaimSQLite)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	over := make(chan error, 1)
	go func() {
		err := b.loop(ctx, claim, ran)
		if ctx.Err() != nil {
			err = nil // in whatever form a statement tells that
		}
		over <- errors.Join(err, claim.Close())
	}()
	return func() error {
		cancel()
		return <-over
	}, nil
}

func (b *bareSQLite) loop(ctx context.Context, claim *sql.Stmt, ran func(int)) error {
	for {
		ids, err := b.claim(ctx, claim, ran)
		if err != nil || len(ids) == 0 {
			return err
		}
		if err := b.finish(ctx, ids); err != nil {
			return err
		}
	}
}

func (b *bareSQLite) claim(ctx context.Context, claim *sql.Stmt, ran func(int)) (ids []int64, err error) {
	rows, err := claim.QueryContext(ctx, b.group)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var id int64
		var args []byte
		if err := rows.Scan(&id, &args); err != nil {
			return nil, err
		}
		ids = append(ids, id)
		var a number
		if err := json.Unmarshal(args, &a); err != nil {
			return nil, err
		}
		ran(a.N)
	}
	return ids, rows.Err()
}

func (b *bareSQLite) finish(ctx context.Context, ids []int64) error {
	list, err := json.Marshal(ids)
	if err != nil {
		return err
	}
	tx, err := b.conn.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(ctx, bareCopySQLite, string(list)); err != nil {
		return err
	}
	done, err := tx.ExecContext(ctx, "DELETE FROM outbox_tasks WHERE rowid IN (SELECT value FROM json_each(?1))", string(list))
	if err != nil {
		return err
	}
	if n, err := done.RowsAffected(); err != nil || n != int64(len(ids)) {
		return errors.Join(err, fmt.Errorf("%d of %d tasks finished", n, len(ids)))
	}
	return tx.Commit()
}

func (b *bareSQLite) close() error { return errors.Join(b.conn.Close(), b.ours.close()) }

func (b *bench) enterBareSQLite(group, n int) entrant {
	return entrant{fmt.Sprintf("bare loop, groups of %s", format(float64(group))), false, n, b.onFile(func(ctx context.Context, path string) (contestant, error) {
		return openBareSQLite(ctx, path, group)
	})}
}
