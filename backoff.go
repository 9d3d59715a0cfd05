package outbox

import (
	"fmt"
	"math/rand/v2"
	"time"
)

// DefaultBackoff doubles from one second to an hour, each a quarter more or less at random.
func DefaultBackoff(attempt int) time.Duration {
	d := time.Hour
	if attempt < 13 {
		d = min(d, time.Second<<max(0, attempt-1))
	}
	return d - d/4 + rand.N(d/2)
}

// Permanent wraps an error so that the task ends as error at once, whatever attempts are left. Permanent(nil) is nil.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return &permanentError{err}
}

type permanentError struct{ err error }

func (e *permanentError) Error() string { return e.err.Error() }
func (e *permanentError) Unwrap() error { return e.err }

// Snooze is what a handler returns to be run again after d, by the database's clock, without having failed: the run does
// not count as an attempt. A transactional handler's writes are rolled back. A negative d is zero. Hooks.OnFinish is told
// ReasonSnoozed, without an error.
func Snooze(d time.Duration) error { return &snoozeError{max(0, d)} }

type snoozeError struct{ d time.Duration }

func (e *snoozeError) Error() string { return fmt.Sprintf("snooze for %v", e.d) }
