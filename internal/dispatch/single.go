package dispatch

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/gorm-outbox/outbox/internal/dialect"
)

// single is the lock of a dispatcher with Options.SingleProcess. A crash of the holder releases it,
// so its next holder can rescue the tasks of every other process without waiting.
type single struct {
	conn *sql.Conn // its session has the lock
	file io.Closer // or the file that is open
}

// lockSingle takes the lock, or fails with the name of the process that has it.
func (d *dispatcher) lockSingle(ctx context.Context) error {
	if files, ok := d.store.Dialect.(dialect.FileLocker); ok {
		path, err := files.File(ctx, d.store.Pool)
		if err != nil || path == "" {
			return err
		}
		if d.single.file, err = lockFile(path + "-outbox-lock"); err != nil {
			return fmt.Errorf("SingleProcess: lock a file beside the database: %w", err)
		}
		if d.single.file == nil {
			return d.anotherSingle(ctx)
		}
		return nil
	}
	if d.store.Pool.Stats().MaxOpenConnections == 1 {
		return errors.New("SingleProcess keeps a connection, so MaxOpenConns must be at least 2")
	}
	// A server may need a moment to end the session of a connection that was closed.
	patience := min(time.Second, d.cfg.statementLimit()/2)
	for begun := time.Now(); ; {
		got, err := d.trySession(ctx)
		if err != nil || got {
			return err
		}
		if time.Since(begun) >= patience {
			return d.anotherSingle(ctx)
		}
		if err := dialect.Wait(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
}

// trySession takes the lock of a session that is kept.
func (d *dispatcher) trySession(ctx context.Context) (bool, error) {
	sessions, ok := d.store.Dialect.(dialect.SessionLocker)
	if !ok {
		return false, nil
	}
	conn, err := d.store.Pool.Conn(ctx)
	if err != nil {
		return false, err
	}
	got, err := sessions.TryAlone(ctx, conn)
	if got {
		d.single.conn = conn
		return true, nil
	}
	if err != nil {
		closeSession(conn) // the reply may be lost, and the lock taken
	}
	_ = conn.Close()
	return false, err
}

// closeSession ends a connection's session, and with it its locks.
func closeSession(conn *sql.Conn) {
	_ = conn.Raw(func(any) error { return driver.ErrBadConn })
}

// anotherSingle is the error that names the holder of the lock: the process that has beaten last.
func (d *dispatcher) anotherSingle(ctx context.Context) error {
	host, pid, found, err := d.store.LastBeaten(ctx)
	if err != nil {
		return err
	}
	name := "which has not registered yet"
	if found {
		name = fmt.Sprintf("on host %s, with pid %d", host, pid)
	}
	return fmt.Errorf("another process with SingleProcess runs on this database, %s", name)
}

// inherit rescues the tasks of every other process, at the start of the only one.
func (d *dispatcher) inherit(ctx context.Context) error {
	if err := d.store.ExpireOthers(ctx, d.lease.owner()); err != nil {
		return err
	}
	return d.rescue(ctx)
}

// keepSingle takes the lock again if the session that had it is gone. While another process has the
// lock, this one goes on as one of several: only the start depends on the lock.
func (d *dispatcher) keepSingle(ctx context.Context) {
	if _, ok := d.store.Dialect.(dialect.SessionLocker); !ok {
		return
	}
	limited, cancel := context.WithTimeout(ctx, min(d.cfg.statementLimit(), farewellLimit))
	defer cancel()
	if c := d.single.conn; c != nil {
		if c.PingContext(limited) == nil || ctx.Err() != nil {
			return
		}
		closeSession(c)
		_ = c.Close()
		d.single.conn = nil
	}
	const step = "take the lock of the only process"
	if got, err := d.trySession(limited); err != nil && ctx.Err() == nil {
		d.outages.failed(step, err)
	} else if got {
		d.outages.recovered(step)
	} else if ctx.Err() == nil {
		d.outages.failed(step, errNotSingle)
	}
}

var errNotSingle = errors.New("another process with SingleProcess has started on this database")

// unlockSingle is for the end of Run, and of a start that fails.
func (d *dispatcher) unlockSingle() {
	if d.single.file != nil {
		_ = d.single.file.Close()
	}
	if c := d.single.conn; c != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := d.store.Dialect.(dialect.SessionLocker).EndAlone(ctx, c); err != nil {
			closeSession(c)
		}
		_ = c.Close()
	}
	d.single = single{}
}
