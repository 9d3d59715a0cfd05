// Package pgnotify wakes dispatchers in other processes through PostgreSQL's LISTEN and NOTIFY,
// over the application's own pool of connections.
//
//	outbox.New(outbox.Options{Wakers: []outbox.Waker{pgnotify.New(pgnotify.Options{})}})
//
// A task that one process creates then starts within milliseconds of its commit in another, instead
// of at that one's next scan. A process that only creates tasks needs the Waker too. Nothing
// depends on a notification: one that is lost costs the wait until the next scan.
//
// # What it needs
//
// The pool's driver must be pgx v5's stdlib, as gorm.io/driver/postgres opens it. It may be wrapped
// by a package that shows what it wraps, as otelsql, dd-trace-go and sqlhooks do. While Run
// dispatches, one connection of the pool is taken for listening: count it in MaxOpenConns. Where
// the driver hides its connections (sqlmw), the pool has a single connection, or it goes through
// PgBouncer in transaction or statement mode, which loses LISTEN, give pgnotify a connection of its
// own with Options.Connect; without it the log says once why nothing listens, and tasks of other
// processes wait for the scan. A transaction that has created a task cannot be prepared for a
// two-phase commit.
//
// # What it costs
//
// PostgreSQL takes a lock at the commit of every transaction that notifies, one for the whole
// server: with sixteen writers, a notification in each transaction takes a third of their rate. So
// notifications are coalesced: one an Interval and process, or two while transactions overlap; that
// takes less than a tenth. The first task of an interval notifies in its own transaction and so at
// the moment of its commit. That transaction may last, or roll back, while others that came later
// commit; for them reminders are sent 1, 2.5, 6, 20, 80 and 320 ms later on a connection of its
// own, which the pool lends for that one statement.
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

// Options of New. Every zero value is a useful default.
type Options struct {
	// Channel names the notifications, in up to 63 bytes; it is the same in all processes that
	// share the tables. Empty means "outbox". Channels belong to a database, not to a schema: where
	// several sets of tables live in one database, give each its own, or they wake each other for
	// nothing.
	Channel string

	// Interval is the least time between two tasks of this process that notify, and between two
	// reminders. Zero means 2 ms.
	Interval time.Duration

	// Connect opens the connection to listen on, which pgnotify closes. Nil means one of the
	// pool's. It is for a pool that pgnotify cannot listen on, because it goes through PgBouncer,
	// has a single connection, or has a driver that hides pgx's connections; such as
	//
	//	func(ctx context.Context) (*pgx.Conn, error) { return pgx.Connect(ctx, dsn) }
	Connect func(ctx context.Context) (*pgx.Conn, error)
}

// Waker is an outbox.Waker for one plugin. It is safe for concurrent use.
type Waker struct {
	channel  string
	interval time.Duration
	alive    time.Duration // of silence, after which the listening connection is tried
	limit    time.Duration // of one statement
	connect  func(context.Context) (*pgx.Conn, error)

	mu      sync.Mutex
	last    time.Time   // start of the interval whose notification has been sent
	timer   *time.Timer // of the next reminder; nil when none will come, or when one is being sent
	next    time.Time   // when timer fires
	sending bool
	since   time.Time // the task that reminders are counted from
	latest  time.Time // the last task that found its interval taken
	sent    int       // reminders since then
}

var _ outbox.Waker = (*Waker)(nil)

// maxChannel is what PostgreSQL takes for a name: pg_notify refuses a longer one, LISTEN would cut
// it.
const maxChannel = 63

// New returns a Waker for outbox.Options.Wakers, one for each plugin. It panics on a channel name
// that PostgreSQL does not take, and on a negative interval.
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

// Created is part of outbox.Waker. It notifies in the creator's transaction, or has it reminded of.
func (w *Waker) Created(ctx context.Context, conn gorm.ConnPool, pool *sql.DB) error {
	if !w.take(time.Now(), pool) {
		return nil
	}
	if _, err := conn.ExecContext(ctx, notify, w.channel); err != nil {
		return fmt.Errorf("pgnotify: notify: %w", err)
	}
	return nil
}

// reminders are counted from a task that found its interval taken. Most transactions commit right
// after their task; whose lasts longer than the last reminder has to wait for a scan.
var reminders = []time.Duration{
	time.Millisecond, 2500 * time.Microsecond, 6 * time.Millisecond, 20 * time.Millisecond, 80 * time.Millisecond, 320 * time.Millisecond,
}

// take reports whether a task has the interval's notification for itself; otherwise a reminder is
// going to be sent.
func (w *Waker) take(now time.Time, pool *sql.DB) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.last.IsZero() || now.Sub(w.last) >= w.interval {
		w.last = now
		return true
	}
	w.latest = now
	if w.sending || w.timer != nil && (!w.next.After(w.first(now)) || !w.timer.Stop()) {
		return false // the one that comes counts from this task
	}
	w.since, w.sent = now, 0
	w.arm(w.first(now), pool)
	return false
}

// first is when a task is reminded of that finds its interval taken.
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

// remind notifies on behalf of whatever has been committed by now. It leaves the interval to the
// tasks: one that notifies in its own transaction is there at the moment of its commit. Tasks that
// come while reminders are being sent begin their count again: until then there has been one an
// interval.
func (w *Waker) remind(pool *sql.DB) {
	ctx, cancel := context.WithTimeout(context.Background(), w.limit)
	defer cancel()
	w.mu.Lock()
	w.timer, w.sending = nil, true
	w.mu.Unlock()
	_, _ = pool.ExecContext(ctx, notify, w.channel) // a hint that is lost: its failure is of no use to anybody
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
