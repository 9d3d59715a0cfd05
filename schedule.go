package outbox

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
)

// minScan keeps a slip of the pen from becoming a busy loop.
const minScan = 10 * time.Millisecond

// parseSchedule reads a cron spec, with three things that cron.Parse does not do: intervals below a second, an error in
// place of a panic ("TZ=UTC" without a spec), and an error for a spec that never comes ("0 0 31 2 *").
func parseSchedule(spec string) (s cron.Schedule, err error) {
	defer func() {
		if v := recover(); v != nil {
			s, err = nil, fmt.Errorf("not a cron spec (%v)", v)
		}
	}()
	if every, ok := strings.CutPrefix(spec, "@every "); ok {
		d, err := time.ParseDuration(strings.TrimSpace(every))
		if err != nil {
			return nil, err
		}
		if d < minScan {
			return nil, fmt.Errorf("an interval of %v is below %v", d, minScan)
		}
		return interval(d), nil
	}
	parser := cron.NewParser(cron.SecondOptional | cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow | cron.Descriptor)
	if s, err = parser.Parse(spec); err != nil {
		return nil, err
	}
	if s.Next(time.Now()).IsZero() {
		return nil, errors.New("never comes")
	}
	return s, nil
}

// interval is cron's ConstantDelaySchedule, which cannot be shorter than a second.
type interval time.Duration

func (i interval) Next(t time.Time) time.Time { return t.Add(time.Duration(i)) }

// clockCheck is how often a wait for the next scan looks at the wall clock.
const clockCheck = time.Minute

// untilNext waits for a schedule's next time. The monotonic clock decides: the wait is never longer
// than it was when it began, wherever the wall clock goes meanwhile. A wall clock that has passed
// the time, because it was set forward or the machine has slept, is noticed within clockCheck.
func untilNext(ctx context.Context, s cron.Schedule, now func() time.Time) error {
	begun, wall := time.Now(), now().Round(0) // without its monotonic reading
	next := s.Next(wall)
	limit := next.Sub(wall)
	if next.IsZero() { // cron looks five years ahead
		limit = 24 * time.Hour
	}
	for {
		if err := wait(ctx, min(limit-time.Since(begun), clockCheck)); err != nil {
			return err
		}
		if time.Since(begun) >= limit || !next.IsZero() && !now().Round(0).Before(next) {
			return nil
		}
	}
}
