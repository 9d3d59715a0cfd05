package dispatch

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// Reasons say how a task or one of its attempts ended. The API documents them.
const (
	ReasonNone        = ""
	ReasonFailed      = "failed"
	ReasonPermanent   = "permanent"
	ReasonPanic       = "panic"
	ReasonGoexit      = "goexit"
	ReasonTimeout     = "timeout"
	ReasonInterrupted = "interrupted"
	ReasonBadArgs     = "bad_args"
	ReasonTransaction = "transaction"
	ReasonBadResult   = "bad_result"
	ReasonSnoozed     = "snoozed"
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

// DefaultBackoff doubles from one second to an hour, each a quarter more or less at random.
func DefaultBackoff(attempt int) time.Duration {
	d := time.Hour
	if attempt < 13 {
		d = min(d, time.Second<<max(0, attempt-1))
	}
	return d - d/4 + rand.N(d/2)
}

// Attempt is one attempt that did not succeed, as the row of its task lists it.
type Attempt struct {
	Attempt int       `json:"attempt"`
	At      time.Time `json:"at"`
	Reason  string    `json:"reason"`
	Error   string    `json:"error,omitempty"`
}

// attempts reads such a list. A document of another shape reads as empty: what another program has
// made of the column must not stop the dispatcher.
func attempts(column *string) (list []Attempt) {
	if column == nil || json.Unmarshal([]byte(*column), &list) != nil {
		return nil
	}
	return list
}
