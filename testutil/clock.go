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
// Then a test waits for nothing: a task created with outbox.StartAfter(30*time.Minute) is not run
// by [Drain], and after clock.Advance(30*time.Minute) it is. TestDocumentationOfTheClock tells that
// story in full. Plugin.Run, too, follows the clock, but looks at it only when it scans.
//
// Its methods are safe for concurrent use. Its times are whole milliseconds, as SQLite's clock is,
// so that every database computes the same due times from it.
type Clock struct {
	mu  sync.Mutex
	now time.Time
}

// NewClock returns a clock that shows start, cut to the millisecond.
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

// Advance moves the clock by d, back if d is negative.
func (c *Clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// Set moves the clock to t, cut to the millisecond.
func (c *Clock) Set(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = t.Truncate(time.Millisecond) // strips the monotonic reading, too, by which equal times would differ
}
