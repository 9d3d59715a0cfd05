package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/gorm-outbox/outbox"
)

// bare is the least that our tables allow: connections of pgx each of which claims a group with one
// statement, runs it in a row and finishes it with one statement. It has no fence, no time limits,
// no slots and no heartbeat; what it does a second is what the database can do.
type bare struct {
	*ours
	dsn          string
	conns, group int
	marked       bool // each connection remembers how far it has come, and its next claim begins there
}

func openBare(ctx context.Context, dsn string, conns, group int, marked bool) (*bare, error) {
	o, err := openOursOn(ctx, dsn, outbox.Options{}, 4)
	return &bare{o, dsn, conns, group, marked}, err
}

const bareClaim = `
UPDATE outbox_tasks SET state = 'running', attempt = attempt + 1, version = version + 1, started_at = clock_timestamp()
WHERE id = ANY (ARRAY(
	SELECT id FROM outbox_tasks
	WHERE state = 'pending' AND queue = 'default' AND priority = 2 AND run_at <= (SELECT clock_timestamp())
	ORDER BY run_at LIMIT $1 FOR UPDATE SKIP LOCKED))
RETURNING id, args, run_at`

var bareClaimMarked = strings.Replace(bareClaim, "ORDER BY run_at", "AND (run_at, id) > ($2, $3) ORDER BY run_at, id", 1)

const bareFinish = `
WITH d AS (DELETE FROM outbox_tasks WHERE id = ANY ($1) RETURNING *)
INSERT INTO outbox_history (id, func, args, key, queue, priority, run_at, attempt, uncounted, crashes, max_attempts, timeout_ms,
	version, process_id, rerun_of, errors, meta, created_at, started_at, status, reason, result, error, finished_at)
SELECT id, func, args, key, queue, priority, run_at, attempt, uncounted, crashes, max_attempts, timeout_ms,
	version, process_id, rerun_of, errors, meta, created_at, started_at, 'success', '', NULL, NULL, clock_timestamp() FROM d`

func (b *bare) start(ctx context.Context, ran func(int)) (func() error, error) {
	ctx, cancel := context.WithCancel(ctx)
	over := make(chan error, b.conns)
	stop := func(begun int) (err error) {
		cancel()
		for range begun {
			err = errors.Join(err, <-over)
		}
		return err
	}
	for i := range b.conns {
		conn, err := pgx.Connect(ctx, b.dsn)
		if err != nil {
			return nil, errors.Join(err, stop(i))
		}
		go func() {
			err := b.loop(ctx, conn, ran)
			if ctx.Err() != nil {
				err = nil // in whatever form a statement tells that
			}
			over <- errors.Join(err, conn.Close(context.WithoutCancel(ctx)))
		}()
	}
	return func() error { return stop(b.conns) }, nil
}

// loop ends when nothing is due.
func (b *bare) loop(ctx context.Context, conn *pgx.Conn, ran func(int)) error {
	var ids []string
	var id string
	var args []byte
	var runAt, lastAt time.Time
	var last string
	for {
		ids = ids[:0]
		claim, params := bareClaim, []any{b.group}
		if b.marked {
			claim, params = bareClaimMarked, append(params, lastAt, last)
		}
		rows, err := conn.Query(ctx, claim, params...)
		if err != nil {
			return err
		}
		_, err = pgx.ForEachRow(rows, []any{&id, &args, &runAt}, func() error {
			ids = append(ids, id)
			if c := runAt.Compare(lastAt); c > 0 || c == 0 && id > last {
				lastAt, last = runAt, id
			}
			var a number
			if err := json.Unmarshal(args, &a); err != nil {
				return err
			}
			ran(a.N)
			return nil
		})
		if err != nil || len(ids) == 0 {
			return err
		}
		tag, err := conn.Exec(ctx, bareFinish, ids)
		if err != nil {
			return err
		}
		if tag.RowsAffected() != int64(len(ids)) {
			return fmt.Errorf("%d of %d tasks finished", tag.RowsAffected(), len(ids))
		}
	}
}

func (b *bench) enterBare(group, n int) entrant {
	return entrant{fmt.Sprintf("bare loop, groups of %s", format(float64(group))), false, n, b.onServer(func(ctx context.Context, dsn string) (contestant, error) {
		return openBare(ctx, dsn, 1, group, false)
	})}
}
