package pgnotify

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"reflect"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/gorm-outbox/outbox"
)

// Errors after which Listen is not tried again, for the next try would end like this one.
var (
	// ErrDriver: the pool's connections are not pgx's, or are wrapped by a package that hides them.
	ErrDriver = errors.New("the pool's driver is not github.com/jackc/pgx/v5/stdlib, which gorm.io/driver/postgres opens, " +
		"or hides it: give pgnotify a connection of its own with Options.Connect")

	// ErrPool: the pool has a single connection, and the listener would take it from everybody
	// else.
	ErrPool = errors.New("the pool has a single connection: raise MaxOpenConns, or give pgnotify one of its own with Options.Connect")
)

// Listen is part of outbox.Waker. It holds a connection of the pool until ctx is done; then the
// connection goes back, or is closed if it may be listening still. With Options.Connect it opens
// and closes one of its own. Errors: ErrDriver and ErrPool, both of them Permanent; that the
// connection is dead, or could not be had.
func (w *Waker) Listen(ctx context.Context, pool *sql.DB, wake func()) error {
	on := w.listenOnPool
	if w.connect != nil {
		on = w.listenOnOwn
	}
	if err := on(ctx, pool, wake); err != nil && ctx.Err() == nil {
		return fmt.Errorf("pgnotify: listen on channel %q: %w", w.channel, err)
	}
	return nil
}

func (w *Waker) listenOnOwn(ctx context.Context, _ *sql.DB, wake func()) error {
	limited, cancel := context.WithTimeout(ctx, w.limit)
	c, err := w.connect(limited)
	cancel()
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer func() {
		_ = w.within(context.WithoutCancel(ctx), c.Close) // nobody needs it any more
	}()
	return w.listen(ctx, c, wake)
}

func (w *Waker) listenOnPool(ctx context.Context, pool *sql.DB, wake func()) error {
	if pool.Stats().MaxOpenConnections == 1 {
		return outbox.Permanent(ErrPool)
	}
	conn, err := pool.Conn(ctx)
	if err != nil {
		return fmt.Errorf("get a connection: %w", err)
	}
	defer conn.Close()
	return conn.Raw(func(raw any) error {
		c := unwrap(raw)
		if c == nil {
			return outbox.Permanent(fmt.Errorf("%w: a connection is a %T", ErrDriver, raw))
		}
		if err := w.listen(ctx, c.Conn(), wake); err != nil {
			// The pool drops the connection: it is dead, or nobody knows its state.
			return fmt.Errorf("%w (%w)", err, driver.ErrBadConn)
		}
		return nil
	})
}

var driverConn = reflect.TypeFor[driver.Conn]()

// maxWrapped is more packages than anybody stacks.
const maxWrapped = 10

// unwrap looks for pgx's connection behind those that trace or measure; nil when it is not shown.
// Some have a method for it (otelsql's Raw, dd-trace-go's WrappedConn), others a field Conn
// (sqlhooks).
func unwrap(conn any) *stdlib.Conn {
	for range maxWrapped {
		var inner any
		switch c := conn.(type) {
		case *stdlib.Conn:
			return c
		case interface{ Raw() driver.Conn }:
			inner = c.Raw()
		case interface{ WrappedConn() driver.Conn }:
			inner = c.WrappedConn()
		case interface{ Unwrap() driver.Conn }:
			inner = c.Unwrap()
		default:
			v := reflect.Indirect(reflect.ValueOf(conn))
			if v.Kind() != reflect.Struct {
				return nil
			}
			f, ok := v.Type().FieldByName("Conn")
			if !ok || f.Type != driverConn {
				return nil
			}
			field, err := v.FieldByIndexErr(f.Index)
			if err != nil || !field.CanInterface() {
				return nil
			}
			inner = field.Interface()
		}
		conn = inner
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

// wait returns nil when there is a notification. A connection whose other end is gone stays silent
// for ever, so silence is answered with a question.
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
