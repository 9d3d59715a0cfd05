package dispatch

import (
	"context"
	"time"

	"github.com/gorm-outbox/outbox/internal/dialect"
)

// clockCheck is how often a wait for the next scan looks at the wall clock.
const clockCheck = time.Minute

// untilNext waits for a schedule's next time. The monotonic clock decides: the wait is never longer
// than it was when it began, wherever the wall clock goes meanwhile. A wall clock that has passed
// the time, because it was set forward or the machine has slept, is noticed within clockCheck.
func untilNext(ctx context.Context, s Schedule, now func() time.Time) error {
	begun, wall := time.Now(), now().Round(0) // without its monotonic reading
	next := s.Next(wall)
	limit := next.Sub(wall)
	if next.IsZero() { // cron looks five years ahead
		limit = 24 * time.Hour
	}
	for {
		if err := dialect.Wait(ctx, min(limit-time.Since(begun), clockCheck)); err != nil {
			return err
		}
		if time.Since(begun) >= limit || !next.IsZero() && !now().Round(0).Before(next) {
			return nil
		}
	}
}
