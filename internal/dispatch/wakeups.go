package dispatch

import "sync/atomic"

// reason is why the dispatcher's loop is to look again.
type reason uint32

const (
	scanDue       reason = 1 << iota // the schedule's next time has come: poll
	maybeDue                         // tasks may be due somewhere: poll
	knownDue                         // tasks are due in partitions that are known: claim without a poll
	slotFreed                        // a slot is free, or a group of outcomes is persisted
	claimsUnknown                    // recovery is to look for claims that this process does not know
)

// wakeups gathers reasons until the loop takes them.
type wakeups struct {
	pending atomic.Uint32
	signal  chan struct{} // of one, for the loop to wait on
}

func newWakeups() *wakeups { return &wakeups{signal: make(chan struct{}, 1)} }

func (w *wakeups) add(r reason) {
	if reason(w.pending.Or(uint32(r)))&r != r {
		signal(w.signal)
	}
}

// take returns the reasons since the last call. It may return none after a signal.
func (w *wakeups) take() reason { return reason(w.pending.Swap(0)) }

// signal leaves a signal in a channel of one, unless it has one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
