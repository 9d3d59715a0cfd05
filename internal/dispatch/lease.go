package dispatch

import (
	"sync"
	"time"

	"github.com/gorm-outbox/outbox/internal/store"
)

// lease is the id of this process in the process table, and the time until which the process may
// act. It expires well before other processes may call this one dead. Each heartbeat that succeeds
// renews it.
type lease struct {
	length time.Duration
	expiry *time.Timer // calls onExpiry

	mu       sync.Mutex
	id       string // of the process row; a new one after having been declared dead
	lastBeat time.Time
}

// newLease returns a lease that is not valid yet. onExpiry is called in a goroutine of its own when
// the lease expires.
func newLease(length time.Duration, onExpiry func()) *lease {
	return &lease{length: length, expiry: time.AfterFunc(time.Hour, onExpiry)}
}

// begin starts the lease of a new id. sent is when the INSERT of its row was sent.
func (l *lease) begin(id string, sent time.Time) {
	l.mu.Lock()
	l.id, l.lastBeat = id, sent
	l.mu.Unlock()
	l.expiry.Reset(l.length - time.Since(sent))
}

// renew is called after a heartbeat. sent is when its statement was sent. It reports whether the
// lease had expired before.
func (l *lease) renew(sent time.Time) (hadExpired bool) {
	l.mu.Lock()
	hadExpired = l.expiredLocked()
	l.lastBeat = sent
	l.mu.Unlock()
	l.expiry.Reset(l.length - time.Since(sent))
	return hadExpired
}

// postponeExpiry has onExpiry called later, while other processes cannot expire this one.
func (l *lease) postponeExpiry() { l.expiry.Reset(l.length) }

func (l *lease) stop() { l.expiry.Stop() }

// owner is the id of the process row.
func (l *lease) owner() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.id
}

// valid reports whether the last good heartbeat is recent enough.
func (l *lease) valid() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.expiredLocked()
}

// owns reports whether a claimed task may be run. The reply to a claim may come after the lease has
// expired, or after another process has expired this one.
func (l *lease) owns(t *store.Task) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.expiredLocked() && t.Owner() == l.id
}

// beatenSince reports whether a heartbeat that was sent after a time has succeeded.
func (l *lease) beatenSince(t time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lastBeat.After(t)
}

// l.mu must be held.
func (l *lease) expiredLocked() bool { return time.Since(l.lastBeat) >= l.length }
