package dispatch

import (
	"encoding/json"
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
