package pgnotify

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
)

// ErrDriver: the pool's connections are not pgx's, so that nothing can listen on them.
var ErrDriver = errors.New("the pool's driver is not github.com/jackc/pgx/v5/stdlib, which gorm.io/driver/postgres opens")

// Listen is part of outbox.Waker. It holds a connection of the pool until ctx is done; then the connection goes back,
// or is closed if it may be listening still. Errors: ErrDriver; that the connection is dead, or could not be had.
func (w *Waker) Listen(ctx context.Context, pool *sql.DB, wake func()) error {
	conn, err := pool.Conn(ctx)
	if err != nil {
		return fmt.Errorf("pgnotify: listen: get a connection: %w", err)
	}
	defer conn.Close()
	err = conn.Raw(func(raw any) error {
		c, ok := raw.(*stdlib.Conn)
		if !ok {
			return fmt.Errorf("%w: a connection is a %T", ErrDriver, raw)
		}
		if err := w.listen(ctx, c.Conn(), wake); err != nil {
			// The pool drops the connection: it is dead, or nobody knows its state.
			return fmt.Errorf("%w (%w)", err, driver.ErrBadConn)
		}
		return nil
	})
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("pgnotify: listen on channel %q: %w", w.channel, err)
	}
	return nil
}

// listen returns nil when ctx is done and the connection does not listen any more.
func (w *Waker) listen(ctx context.Context, c *pgx.Conn, wake func()) error {
	name := pgx.Identifier{w.channel}.Sanitize()
	if err := w.within(ctx, func(ctx context.Context) error {
		_, err := c.Exec(ctx, "LISTEN "+name)
		return err
	}); err != nil {
		return err
	}
	wake() // for what was notified before
	for {
		err := w.wait(ctx, c)
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			return err
		}
		wake()
	}
	return w.within(context.WithoutCancel(ctx), func(ctx context.Context) error {
		_, err := c.Exec(ctx, "UNLISTEN "+name)
		return err
	})
}

// wait returns nil when there is a notification. A connection whose other end is gone stays silent for ever, so silence
// is answered with a question.
func (w *Waker) wait(ctx context.Context, c *pgx.Conn) error {
	for {
		limited, cancel := context.WithTimeout(ctx, w.alive)
		_, err := c.WaitForNotification(limited)
		silent := limited.Err() != nil
		cancel()
		if err == nil || !silent || ctx.Err() != nil {
			return err
		}
		if err := w.within(ctx, c.Ping); err != nil {
			return fmt.Errorf("the connection was silent and does not answer: %w", err)
		}
	}
}

func (w *Waker) within(ctx context.Context, do func(context.Context) error) error {
	limited, cancel := context.WithTimeout(ctx, w.limit)
	defer cancel()
	return do(limited)
}
