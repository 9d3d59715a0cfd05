package testutil

import (
	"sync"
	"time"
)

// Clock is a clock that stands still until a test moves it. Give it to the plugin in place of the
// database's clock, and to the code under test in place of time.Now:
//
//	clock := testutil.NewClock(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))
//	plugin := outbox.New(outbox.Options{Clock: clock.Now})
//
// The test then does not have to wait: [Drain] does not run a task that was created with
// outbox.StartAfter(30*time.Minute), but runs it after clock.Advance(30*time.Minute).
// TestDocumentationOfTheClock is the full example. Plugin.Run follows the clock, too, but reads it
// only when it scans.
//
// The methods are safe for concurrent use. The times are whole milliseconds, like those of SQLite's
// clock, so that every database computes the same start times from them.
type Clock struct {
	mu  sync.Mutex
	now time.Time
}

// NewClock returns a clock that shows start, truncated to the millisecond.
func NewClock(start time.Time) *Clock {
	c := &Clock{}
	c.Set(start)
	return c
}

// Now is the time that the clock shows.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now.Truncate(time.Millisecond)
}

// Advance moves the clock by d. A negative d moves it back.
func (c *Clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// Set moves the clock to t, truncated to the millisecond.
func (c *Clock) Set(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	// Truncate also removes the monotonic reading, which would make equal times differ.
	c.now = t.Truncate(time.Millisecond)
}
