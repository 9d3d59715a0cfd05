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

// After these errors Listen is not called again, because the next call would fail in the same way.
var (
	// ErrDriver means that the pool's connections are not pgx's, or that a package wraps and hides
	// them.
	ErrDriver = errors.New("the pool's driver is not github.com/jackc/pgx/v5/stdlib, which gorm.io/driver/postgres opens, " +
		"or hides it: give pgnotify a connection of its own with Options.Connect")

	// ErrPool means that the pool has a single connection. The listener would take it from the rest
	// of the application.
	ErrPool = errors.New("the pool has a single connection: raise MaxOpenConns, or give pgnotify one of its own with Options.Connect")
)

// Listen is part of outbox.Waker. It holds a connection of the pool until ctx is done. Then the
// connection returns to the pool, or is closed if it may still be listening. With Options.Connect,
// Listen opens and closes a connection of its own. Errors: ErrDriver and ErrPool, both of them
// Permanent; and errors of a connection that is dead or could not be opened.
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
		_ = w.within(context.WithoutCancel(ctx), c.Close) // the connection is no longer needed
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
			// ErrBadConn makes the pool drop the connection: it is dead, or its state is unknown.
			return fmt.Errorf("%w (%w)", err, driver.ErrBadConn)
		}
		return nil
	})
}

var driverConn = reflect.TypeFor[driver.Conn]()

// maxWrapped is larger than the number of packages that wrap each other in practice.
const maxWrapped = 10

// unwrap returns pgx's connection inside of packages that trace or measure. It returns nil if the
// packages do not show it. Some packages have a method for it (otelsql's Raw, dd-trace-go's
// WrappedConn), others a field Conn (sqlhooks).
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

// listen returns nil when ctx is done and the connection no longer listens.
func (w *Waker) listen(ctx context.Context, c *pgx.Conn, wake func()) error {
	name := pgx.Identifier{w.channel}.Sanitize()
	if err := w.within(ctx, func(ctx context.Context) error {
		_, err := c.Exec(ctx, "LISTEN "+name)
		return err
	}); err != nil {
		return err
	}
	wake() // for notifications that came earlier
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

// wait returns nil when a notification has come. A connection whose server is gone stays silent for
// ever, so wait pings the server after a period of silence.
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
