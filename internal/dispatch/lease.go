package dispatch

import (
	"sync"
	"time"

	"github.com/gorm-outbox/outbox/internal/store"
)

// lease says who this process is in the process table, and until when it may act: well before
// others may call it dead. Each heartbeat that succeeds renews it.
type lease struct {
	length time.Duration
	expiry *time.Timer // calls onExpiry

	mu       sync.Mutex
	id       string // of the process row; a new one after having been declared dead
	lastBeat time.Time
}

// newLease returns one that is not valid yet. onExpiry is called when it has run out, in a
// goroutine of its own.
func newLease(length time.Duration, onExpiry func()) *lease {
	return &lease{length: length, expiry: time.AfterFunc(time.Hour, onExpiry)}
}

// begin is the start under a new id, whose row was inserted by a statement that was sent at a time.
func (l *lease) begin(id string, sent time.Time) {
	l.mu.Lock()
	l.id, l.lastBeat = id, sent
	l.mu.Unlock()
	l.expiry.Reset(l.length - time.Since(sent))
}

// renew is called after a heartbeat that was sent at a time. It reports whether the lease had run
// out before.
func (l *lease) renew(sent time.Time) (hadExpired bool) {
	l.mu.Lock()
	hadExpired = l.expiredLocked()
	l.lastBeat = sent
	l.mu.Unlock()
	l.expiry.Reset(l.length - time.Since(sent))
	return hadExpired
}

// postponeExpiry has onExpiry called later, though the lease runs out: others cannot call the
// process dead meanwhile.
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

// owns reports whether a claim may be run: its reply may have come when the handlers of this
// process had been told to stop, because the lease had run out or others had declared the process
// dead.
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

// expiredLocked needs l.mu.
func (l *lease) expiredLocked() bool { return time.Since(l.lastBeat) >= l.length }
