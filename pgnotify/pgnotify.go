// Package pgnotify wakes dispatchers in other processes through PostgreSQL's LISTEN and NOTIFY,
// over the application's own pool of connections.
//
//	outbox.New(outbox.Options{Wakers: []outbox.Waker{pgnotify.New(pgnotify.Options{})}})
//
// A task that one process creates then starts in another process within milliseconds of its commit,
// not at the next scan of that process. A process that only creates tasks needs the Waker, too. No
// task depends on a notification: after a lost one, the task waits for the next scan.
//
// # What it needs
//
// The pool's driver must be pgx v5's stdlib, as gorm.io/driver/postgres opens it. A package may
// wrap the driver if it shows the wrapped connection, as otelsql, dd-trace-go and sqlhooks do.
// While Run dispatches, pgnotify uses one connection of the pool for listening: count it in
// MaxOpenConns.
//
// Give pgnotify a connection of its own with Options.Connect if the driver hides its connections
// (sqlmw), if the pool has a single connection, or if the pool goes through PgBouncer in
// transaction or statement mode, which loses LISTEN. Without it, the log says once why pgnotify
// does not listen, and tasks of other processes wait for the scan.
//
// A transaction that has created a task cannot be prepared for a two-phase commit.
//
// # What it costs
//
// PostgreSQL takes one lock for the whole server at the commit of every transaction that notifies.
// With sixteen writers, a notification in each transaction reduces their rate by a third. So
// notifications are coalesced: a process sends one in each Interval, or two while transactions
// overlap. That reduces the rate by less than a tenth.
//
// The first task of an interval notifies in its own transaction, and so at the moment of its
// commit. This transaction may take long, or roll back, while later transactions commit. For their
// tasks, reminders are sent 1, 2.5, 6, 20, 80 and 320 ms later, on a connection that the pool lends
// for this one statement.
package pgnotify

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
)

// Options are the options of New. Every zero value is a useful default.
type Options struct {
	// Channel is the channel's name, of up to 63 bytes. It is the same in all processes that share
	// the tables. Empty means "outbox". A channel belongs to a database, not to a schema: if
	// several sets of tables are in one database, give each set a channel of its own. Otherwise
	// their processes wake each other needlessly.
	Channel string

	// Interval is the shortest time between two notifications by tasks of this process, and between
	// two reminders. Zero means 2 ms.
	Interval time.Duration

	// Connect opens the connection to listen on. pgnotify closes it. Nil means a connection of the
	// pool. Set it if pgnotify cannot listen on the pool, because the pool goes through PgBouncer,
	// has a single connection, or has a driver that hides pgx's connections. For example:
	//
	//	func(ctx context.Context) (*pgx.Conn, error) { return pgx.Connect(ctx, dsn) }
	Connect func(ctx context.Context) (*pgx.Conn, error)
}

// Waker is an outbox.Waker for one plugin. It is safe for concurrent use.
type Waker struct {
	channel  string
	interval time.Duration
	alive    time.Duration // how long the listening connection may be silent before a ping
	limit    time.Duration // of one statement
	connect  func(context.Context) (*pgx.Conn, error)

	mu      sync.Mutex
	last    time.Time   // start of the interval in which a task has notified
	timer   *time.Timer // of the next reminder; nil when none is due, or when one is being sent
	next    time.Time   // when timer fires
	sending bool
	since   time.Time // time of the task from which reminders are counted
	latest  time.Time // time of the last task that did not notify in its interval
	sent    int       // reminders sent since then
}

var _ outbox.Waker = (*Waker)(nil)

// maxChannel is PostgreSQL's limit for a name: pg_notify refuses a longer name, LISTEN would cut
// it.
const maxChannel = 63

// New returns a Waker for outbox.Options.Wakers; each plugin needs one of its own. It panics on a
// channel name that PostgreSQL does not accept, and on a negative interval.
func New(o Options) *Waker {
	w := &Waker{
		channel: cmp.Or(o.Channel, "outbox"), interval: cmp.Or(o.Interval, 2*time.Millisecond),
		alive: 30 * time.Second, limit: 5 * time.Second, connect: o.Connect,
	}
	if len(w.channel) > maxChannel || strings.ContainsRune(w.channel, 0) {
		panic(fmt.Sprintf("pgnotify: channel %.80q: a name has up to %d bytes, none of them zero", w.channel, maxChannel))
	}
	if w.interval < 0 {
		panic(fmt.Sprintf("pgnotify: interval %v is negative", w.interval))
	}
	return w
}

const notify = "SELECT pg_notify($1, '')"

// Created is part of outbox.Waker. It notifies in the creator's transaction, or arranges reminders.
func (w *Waker) Created(ctx context.Context, conn gorm.ConnPool, pool *sql.DB) error {
	if !w.take(time.Now(), pool) {
		return nil
	}
	if _, err := conn.ExecContext(ctx, notify, w.channel); err != nil {
		return fmt.Errorf("pgnotify: notify: %w", err)
	}
	return nil
}

// reminders are counted from a task that did not notify, because another task of its interval did.
// Most transactions commit right after they have created their task. A task whose transaction lasts
// longer than the last reminder waits for a scan.
var reminders = []time.Duration{
	time.Millisecond, 2500 * time.Microsecond, 6 * time.Millisecond, 20 * time.Millisecond, 80 * time.Millisecond, 320 * time.Millisecond,
}

// take reports whether a task sends the notification of its interval. Otherwise it arranges a
// reminder.
func (w *Waker) take(now time.Time, pool *sql.DB) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.last.IsZero() || now.Sub(w.last) >= w.interval {
		w.last = now
		return true
	}
	w.latest = now
	if w.sending || w.timer != nil && (!w.next.After(w.first(now)) || !w.timer.Stop()) {
		return false // the reminder that comes counts from this task
	}
	w.since, w.sent = now, 0
	w.arm(w.first(now), pool)
	return false
}

// first is the time of the first reminder of a task that does not notify.
func (w *Waker) first(task time.Time) time.Time {
	return later(task.Add(reminders[0]), w.last.Add(w.interval))
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// arm sets the timer for the next reminder.
func (w *Waker) arm(at time.Time, pool *sql.DB) {
	w.next = at
	w.timer = time.AfterFunc(time.Until(at), func() { w.remind(pool) })
}

// remind notifies for all tasks that have been committed by now. It does not use up the interval: a
// task that notifies in its own transaction is visible at the moment of the notification. Reminders
// for tasks that come while reminders are sent start again from the first: until then, one reminder
// has been sent in each interval.
func (w *Waker) remind(pool *sql.DB) {
	ctx, cancel := context.WithTimeout(context.Background(), w.limit)
	defer cancel()
	w.mu.Lock()
	w.timer, w.sending = nil, true
	w.mu.Unlock()
	// The notification is only a hint, so an error is ignored.
	_, _ = pool.ExecContext(ctx, notify, w.channel)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sending = false
	if w.latest.After(w.since) {
		w.since, w.sent = w.latest, 0
	} else if w.sent++; w.sent == len(reminders) {
		return
	}
	w.arm(later(w.since.Add(reminders[w.sent]), time.Now().Add(w.interval)), pool)
}
