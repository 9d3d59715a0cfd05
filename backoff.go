package outbox

import (
	"time"

	"github.com/gorm-outbox/outbox/internal/dispatch"
)

// DefaultBackoff doubles from one second to an hour, each a quarter more or less at random.
func DefaultBackoff(attempt int) time.Duration { return dispatch.DefaultBackoff(attempt) }

// Permanent wraps an error so that the task ends as error at once, whatever attempts are left.
// Permanent(nil) is nil.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return &dispatch.PermanentError{Err: err}
}

// Snooze is what a handler returns to be run again after d, by the database's clock, without having
// failed: the run does not count as an attempt. A transactional handler's writes are rolled back. A
// negative d is zero. Hooks.OnFinish is told ReasonSnoozed, without an error.
func Snooze(d time.Duration) error { return &dispatch.SnoozeError{For: max(0, d)} }
