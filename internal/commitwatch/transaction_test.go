package commitwatch

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"sync/atomic"
	"testing"
	"time"
)

func TestOver(t *testing.T) {
	pool := openSQLite(t)
	for how, end := range map[string]func(*sql.Tx) error{"commit": (*sql.Tx).Commit, "rollback": (*sql.Tx).Rollback} {
		t.Run("after "+how, func(t *testing.T) {
			tx := begin(t, pool)
			over := Over(tx)
			if over() {
				t.Error("over before its end")
			}
			if _, err := tx.ExecContext(t.Context(), "SELECT 1"); err != nil || over() {
				t.Errorf("after asking it cannot be used, or is over: %v", err)
			}
			if err := end(tx); err != nil || !over() {
				t.Errorf("not over after its end, %v", err)
			}
		})
	}
	t.Run("open while rows are being read", func(t *testing.T) {
		tx := begin(t, pool)
		rows, err := tx.QueryContext(t.Context(), "SELECT 1 UNION ALL SELECT 2")
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		if !rows.Next() || Over(tx)() || !rows.Next() {
			t.Error("asking disturbed the reader")
		}
	})
	t.Run("over when its context has ended", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		tx, err := pool.BeginTx(ctx, nil)
		if err != nil {
			t.Fatal(err)
		}
		over := Over(tx)
		cancel()
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for limit := time.After(30 * time.Second); !over(); {
			select {
			case <-tick.C:
			case <-limit:
				t.Fatal("not over within 30 s")
			}
		}
	})
	t.Run("of a pool nothing can be told", func(t *testing.T) {
		if Over(pool) != nil {
			t.Error("a pool is no transaction")
		}
	})
}

// countingDriver counts what is sent to the database.
type countingDriver struct{ sent atomic.Int64 }

func (d *countingDriver) Connect(context.Context) (driver.Conn, error) { return countingConn{d}, nil }
func (d *countingDriver) Driver() driver.Driver                        { return nil }

type countingConn struct{ *countingDriver }

func (c countingConn) Prepare(string) (driver.Stmt, error) {
	c.sent.Add(1)
	return nil, driver.ErrBadConn
}
func (c countingConn) Close() error               { return nil }
func (c countingConn) Begin() (driver.Tx, error)  { return c, nil }
func (c countingConn) Ping(context.Context) error { c.sent.Add(1); return nil }
func (c countingConn) Commit() error              { return nil }
func (c countingConn) Rollback() error            { return nil }

func (c countingConn) ExecContext(context.Context, string, []driver.NamedValue) (driver.Result, error) {
	c.sent.Add(1)
	return driver.RowsAffected(0), nil
}

func TestOverSendsNothing(t *testing.T) {
	var counting countingDriver
	pool := sql.OpenDB(&counting)
	defer pool.Close()
	tx, err := pool.Begin()
	if err != nil {
		t.Fatal(err)
	}
	over := Over(tx)
	for range 1000 {
		if over() {
			t.Fatal("over before its end")
		}
	}
	if n := counting.sent.Load(); n != 0 {
		t.Errorf("%d calls of the driver", n)
	}
	if _, err := tx.Exec("is counted"); err != nil || counting.sent.Load() != 1 {
		t.Errorf("the driver does not count: %d, %v", counting.sent.Load(), err)
	}
	if err := tx.Commit(); err != nil || !over() {
		t.Errorf("not over after its commit, %v", err)
	}
	if n := counting.sent.Load(); n != 1 {
		t.Errorf("%d calls of the driver after the commit", n-1)
	}
}
