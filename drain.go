package outbox

import (
	"fmt"
	"time"
)

// shutDown waits for the handlers, tells them to stop, and gives up on those that do not. It returns when every outcome
// has been handed to the writer.
func (d *dispatcher) shutDown(grace time.Duration) error {
	d.draining.Store(true)
	close(d.drain)
	idle := func(*run) bool { return false }
	if d.restWithin(grace, idle) {
		return nil
	}
	d.endRuns()
	// Those that ignore it are abandoned at the end of the grace, which has to be recorded. The others are about to
	// free their slots once their outcomes are.
	rest := d.restWithin(d.p.opts.CancelGrace+d.statementLimit(), (*run).leftBehind)
	d.mu.Lock()
	defer d.mu.Unlock()
	if rest && len(d.runs) == 0 {
		return nil
	}
	d.stopWriting()
	lost := 0
	for r := range d.runs {
		if !r.recorded.Load() {
			lost++
		}
	}
	return fmt.Errorf("%d handlers ignored the end of their context and are left behind; the outcomes of %d runs could not be recorded", len(d.runs), lost)
}

// restWithin waits until every run is one that may be left.
func (d *dispatcher) restWithin(limit time.Duration, left func(*run) bool) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		if d.rests(left) {
			return true
		}
		select {
		case <-d.slotFree:
		case <-timer.C:
			return d.rests(left)
		}
	}
}

// rests reports whether every run is one that may be left.
func (d *dispatcher) rests(left func(*run) bool) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.exchanging > 0 {
		return false // it may have claimed what is no run yet
	}
	for r := range d.runs {
		if !left(r) {
			return false
		}
	}
	return true
}
