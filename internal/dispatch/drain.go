package dispatch

import (
	"fmt"
	"time"
)

// drainRuns waits for the handlers, tells them to stop, and gives up on those that do not. It
// returns when every outcome has been handed to the completer.
func (d *dispatcher) drainRuns(grace time.Duration) error {
	d.draining.Store(true)
	close(d.drain)
	if d.slots.waitIdle(grace, d.wakeups, func(*run) bool { return false }) {
		return nil
	}
	d.endRuns()
	// Those that ignore it are given up at the end of the grace, which has to be recorded. The
	// others are about to free their slots once their outcomes are.
	rest := d.slots.waitIdle(d.cfg.CancelGrace+d.cfg.statementLimit(), d.wakeups, (*run).leftBehind)
	left, lost := 0, 0
	d.slots.each(func(r *run) {
		left++
		if !r.leftBehind() || r.givenUp.Load() {
			lost++
		}
	})
	if rest && left == 0 {
		return nil
	}
	d.stopWriting()
	return fmt.Errorf("%d handlers ignored the end of their context and are left behind; the outcomes of %d runs could not be recorded", left, lost)
}
