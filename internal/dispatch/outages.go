package dispatch

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/gorm-outbox/outbox/internal/dialect"
)

// outages logs once when something begins to fail, and once when it works again. A conflict with
// another transaction is no failure: where processes work on one cluster's nodes, every tenth claim
// may meet one. It logs those once a period.
type outages struct {
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

func (o *outages) failed(what string, err error) {
	if isClosed(o.pool) {
		o.closed() // Run returns the error
		return
	}
	if o.renew != nil && dialect.OfSession(err) {
		o.renew()
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if dialect.Classify(err) == dialect.Retry {
		o.conflict(what, err)
		return
	}
	if _, known := o.since[what]; known {
		return
	}
	if o.since == nil {
		o.since = map[string]time.Time{}
	}
	o.since[what] = time.Now()
	message, more := o.cause(err)
	o.log.Warn(message, append([]any{"step", what, "err", err}, more...)...)
}

// cause says what keeps a statement waiting where it is this process, and not the database.
func (o *outages) cause(err error) (message string, more []any) {
	class := dialect.Classify(err)
	waited := class == dialect.Busy || errors.Is(err, context.DeadlineExceeded)
	if waited && o.locked != nil && o.locked() {
		return "outbox: waiting for the write lock, which a transactional handler of this process holds", nil
	}
	if o.pool != nil && errors.Is(err, context.DeadlineExceeded) {
		if s := o.pool.Stats(); s.MaxOpenConnections > 0 && s.InUse >= s.MaxOpenConnections {
			return "outbox: every connection of the pool is in use, retrying", []any{"in_use", s.InUse}
		}
	}
	return "outbox: database error, retrying", nil
}

func (o *outages) conflict(what string, err error) {
	if o.conflicts == nil {
		o.conflicts = map[string]conflicts{}
	}
	c := o.conflicts[what]
	c.count++
	if now := time.Now(); c.logged.IsZero() || now.Sub(c.logged) >= conflictPeriod {
		o.log.Warn("outbox: transaction conflicts with others, retrying", "step", what, "count", c.count, "err", err)
		c = conflicts{logged: now}
	}
	o.conflicts[what] = c
}

func (o *outages) recovered(what string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if begun, known := o.since[what]; known {
		delete(o.since, what)
		o.log.Info("outbox: recovered", "step", what, "after", time.Since(begun).Round(time.Millisecond))
	}
}
