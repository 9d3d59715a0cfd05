package outbox

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/gorm-outbox/outbox/internal/dialect"
)

// What a dispatcher does beside dispatching.

const (
	pruneEvery = time.Minute
	pruneBatch = 1000
)

// prune deletes what history has kept long enough, in small batches, until ctx is done.
func (d *dispatcher) prune(ctx context.Context) {
	o := d.p.opts
	// Processes that start together do not prune together.
	for wait(ctx, pruneEvery/2+rand.N(pruneEvery)) == nil {
		for _, kind := range []struct {
			failed bool
			age    time.Duration
		}{{false, o.RetainSuccess}, {true, o.RetainErrors}} {
			if kind.age < 0 {
				continue
			}
			if err := d.pruneOlder(ctx, kind.failed, kind.age); err != nil && ctx.Err() == nil {
				d.trouble.met("prune history", err)
			} else {
				d.trouble.over("prune history")
			}
		}
	}
}

func (d *dispatcher) pruneOlder(ctx context.Context, failed bool, age time.Duration) (err error) {
	defer caught(&err)
	for {
		limited, cancel := context.WithTimeout(ctx, d.statementLimit())
		n, err := d.store.d.Prune(limited, d.store.pool, failed, age, pruneBatch)
		cancel()
		if err != nil || n < pruneBatch {
			return err
		}
		if err := wait(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
}

// listen keeps a Waker listening until ctx is done.
func (d *dispatcher) listen(ctx context.Context, w Waker) {
	name := fmt.Sprintf("listen with %T", w)
	for {
		var err error
		if failed := shield(func() {
			err = w.Listen(ctx, d.store.pool, func() {
				d.trouble.over(name)
				d.wake()
			})
		}); failed != nil {
			err = failed
		} else if err != nil {
			err = tame(err)
		}
		if ctx.Err() != nil {
			return
		}
		if permanent := new(permanentError); errors.As(err, &permanent) {
			d.log.Warn("outbox: a Waker cannot listen, so tasks of other processes start at the next scan",
				"waker", fmt.Sprintf("%T", w), "err", err)
			return
		}
		if err != nil {
			d.trouble.met(name, err)
		}
		if wait(ctx, 500*time.Millisecond+rand.N(time.Second)) != nil {
			return
		}
	}
}

// checkPool warns of a pool that cannot serve what the dispatcher may ask of it.
func (d *dispatcher) checkPool() {
	limit := d.store.pool.Stats().MaxOpenConnections
	if limit == 0 || d.store.d.Serial() {
		return
	}
	need := d.slots + 2 + d.writers + len(d.p.opts.Wakers) // one for each handler; claim, heartbeat and outcomes
	if d.p.opts.SingleProcess {
		need++
	}
	if limit < need {
		d.log.Warn("outbox: the connection pool may be too small: heartbeats could wait for handlers; raise MaxOpenConns or lower Concurrency",
			"max_open_conns", limit, "needed", need, "concurrency", d.slots)
	}
}

// findDeserted reports queues with due tasks that no live process serves, once each. A process that
// is just being replaced is none: the second look in a row counts.
func (d *dispatcher) findDeserted(ctx context.Context) {
	maps.DeleteFunc(d.deserted, func(queue string, _ int) bool { return !d.foreign[queue] })
	if len(d.foreign) == 0 {
		return
	}
	limited, cancel := context.WithTimeout(ctx, d.statementLimit())
	defer cancel()
	served, all, err := d.store.served(limited)
	if err != nil {
		if ctx.Err() == nil {
			d.trouble.met("look for queues without a process", err)
		}
		return
	}
	d.trouble.over("look for queues without a process")
	for queue := range d.foreign {
		if all || served[queue] {
			delete(d.deserted, queue)
			continue
		}
		if d.deserted[queue]++; d.deserted[queue] == 2 {
			d.log.Warn("outbox: tasks are due in a queue that no live process serves", "queue", queue)
		}
	}
}

// renew closes the idle connections of the pool, but not more than once a second. A pool keeps a connection whose server has
// become a standby, or on which somebody has left a setting, as long as it works for the driver. Which one it was is not known here;
// a new one costs little, and those that are in use come back.
func (d *dispatcher) renew() {
	s := d.store
	if s.pool == nil || s.d.Serial() {
		return // a connection to a file has no server; to a database in memory it is the database
	}
	last := d.renewed.Load()
	if now := time.Now().UnixNano(); now-last < int64(time.Second) || !d.renewed.CompareAndSwap(last, now) {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	for range s.pool.Stats().Idle {
		c, err := s.pool.Conn(ctx)
		if err != nil {
			return
		}
		_ = c.Raw(func(any) error { return driver.ErrBadConn }) // which closes it
		_ = c.Close()
	}
}

// trouble logs once when something begins to fail, and once when it works again. A conflict with another transaction is no
// failure: where processes work on one cluster's nodes, every tenth claim may meet one. It logs those once a period.
type trouble struct {
	log    *slog.Logger
	pool   *sql.DB
	closed func()      // called when the pool is closed, after which nothing works again
	locked func() bool // a transactional handler of this process has the only write lock
	renew  func()      // has the next statements go to new sessions

	mu        sync.Mutex
	since     map[string]time.Time
	conflicts map[string]conflicts
}

// conflicts of one step since they were last logged.
type conflicts struct {
	logged time.Time
	count  int
}

const conflictPeriod = time.Minute

func (t *trouble) met(what string, err error) {
	if isClosed(t.pool) {
		t.closed() // Run returns the error
		return
	}
	if t.renew != nil && dialect.OfSession(err) {
		t.renew()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if dialect.Classify(err) == dialect.Retry {
		t.conflict(what, err)
		return
	}
	if _, known := t.since[what]; known {
		return
	}
	if t.since == nil {
		t.since = map[string]time.Time{}
	}
	t.since[what] = time.Now()
	message, more := t.cause(err)
	t.log.Warn(message, append([]any{"step", what, "err", err}, more...)...)
}

// cause says what keeps a statement waiting where it is this process, and not the database.
func (t *trouble) cause(err error) (message string, more []any) {
	class := dialect.Classify(err)
	waited := class == dialect.Busy || errors.Is(err, context.DeadlineExceeded)
	if waited && t.locked != nil && t.locked() {
		return "outbox: waiting for the write lock, which a transactional handler of this process holds", nil
	}
	if t.pool != nil && errors.Is(err, context.DeadlineExceeded) {
		if s := t.pool.Stats(); s.MaxOpenConnections > 0 && s.InUse >= s.MaxOpenConnections {
			return "outbox: every connection of the pool is in use, trying again", []any{"in_use", s.InUse}
		}
	}
	return "outbox: the database fails, trying again", nil
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

func (t *trouble) conflict(what string, err error) {
	if t.conflicts == nil {
		t.conflicts = map[string]conflicts{}
	}
	c := t.conflicts[what]
	c.count++
	if now := time.Now(); c.logged.IsZero() || now.Sub(c.logged) >= conflictPeriod {
		t.log.Warn("outbox: transactions conflict with others, trying again", "step", what, "count", c.count, "err", err)
		c = conflicts{logged: now}
	}
	t.conflicts[what] = c
}

func (t *trouble) over(what string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if begun, known := t.since[what]; known {
		delete(t.since, what)
		t.log.Info("outbox: works again", "step", what, "after", time.Since(begun).Round(time.Millisecond))
	}
}
