package dispatch

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"time"
)

// checkPool warns of a pool that cannot serve what the dispatcher may ask of it.
func (d *dispatcher) checkPool() {
	limit := d.store.Pool.Stats().MaxOpenConnections
	if limit == 0 || d.store.Dialect.Serial() {
		return
	}
	need := d.slots.total + 2 + d.completer.writers + len(d.cfg.Wakers) // a connection for each handler, the claim, the heartbeat and each writer
	if d.cfg.SingleProcess {
		need++
	}
	if limit < need {
		d.log.Warn("outbox: the connection pool may be too small: heartbeats could wait for handlers; raise MaxOpenConns or lower Concurrency",
			"max_open_conns", limit, "needed", need, "concurrency", d.slots.total)
	}
}

// renew closes the idle connections of the pool, at most once a second. A pool keeps a connection
// as long as it works for the driver: also one whose server has become a standby, or on which the
// application has left a setting. Which connection it was is not known here, and a new one costs
// little. A connection in use is closed after a later failure.
func (d *dispatcher) renew() {
	s := d.store
	if s.Pool == nil || s.Dialect.Serial() {
		return // a connection to a file has no server; to a database in memory it is the database
	}
	last := d.renewed.Load()
	if now := time.Now().UnixNano(); now-last < int64(time.Second) || !d.renewed.CompareAndSwap(last, now) {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	for range s.Pool.Stats().Idle {
		c, err := s.Pool.Conn(ctx)
		if err != nil {
			return
		}
		_ = c.Raw(func(any) error { return driver.ErrBadConn }) // which closes it
		_ = c.Close()
	}
}

// isClosed asks without I/O: a pool says that it is closed before it looks at the context.
func isClosed(pool *sql.DB) bool {
	if pool == nil {
		return false
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	err := pool.PingContext(ended)
	return err != nil && err.Error() == "sql: database is closed" // database/sql has no name for it
}
