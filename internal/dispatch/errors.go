package dispatch

import (
	"errors"
	"fmt"
	"time"
)

// Errors that callers branch on. The API documents them.
var (
	ErrBadArgs   = errors.New("bad arguments")
	ErrClaimLost = errors.New("claim lost")
	ErrTxClosed  = errors.New("the handler's transaction is over")
	ErrTxGuarded = errors.New("a handler must not end its transaction")
)

// PermanentError is a handler's: whatever attempts are left, none follows. A Waker's ends its
// listening.
type PermanentError struct{ Err error }

func (e *PermanentError) Error() string { return e.Err.Error() }
func (e *PermanentError) Unwrap() error { return e.Err }

// SnoozeError is a handler's: the task is run again after For, and the run does not count.
type SnoozeError struct{ For time.Duration }

func (e *SnoozeError) Error() string { return fmt.Sprintf("snooze for %v", e.For) }
