package dispatch

import (
	"testing"
	"testing/synctest"
	"time"
)

func someRuns(n int, f *Function) []*run {
	runs := make([]*run, n)
	for i := range runs {
		runs[i] = &run{handler: f}
	}
	return runs
}

func TestSlots(t *testing.T) {
	s := newSlots(4)
	if s.reserve() != 4 || s.free() != 0 || s.reserve() != 0 {
		t.Error("a claim does not reserve every free slot")
	}
	runs := append(someRuns(1, &Function{Transactional: true}), someRuns(2, nil)...)
	s.start(runs)
	if s.free() != 0 || s.taken() != 3 || !s.inTransaction() {
		t.Error("runs that start give slots back")
	}
	s.release(4)
	if s.free() != 1 {
		t.Errorf("%d slots are free of 4, and 3 have a run", s.free())
	}
	// The tasks that were claimed in the place of two runs have their slots when these are done.
	s.transfer(2)
	s.done(runs[0])
	s.done(runs[1])
	if s.free() != 1 || s.inTransaction() {
		t.Errorf("%d slots are free while two are transferred", s.free())
	}
	s.release(2)
	if s.free() != 3 {
		t.Errorf("%d slots are free", s.free())
	}
}

func TestSlotsAreIdle(t *testing.T) {
	all, none := func(*run) bool { return true }, func(*run) bool { return false }
	s := newSlots(2)
	n := s.reserve()
	if s.idle(all) {
		t.Error("idle while a claim is under way")
	}
	runs := someRuns(1, nil)
	s.start(runs)
	s.release(n)
	if s.idle(none) || !s.idle(all) {
		t.Error("a run that may not be left out is")
	}
	bubble(t, func(t *testing.T) {
		w := newWakeups()
		begun := time.Now()
		time.AfterFunc(time.Second, func() { w.add(slotFreed) }) // nothing has changed
		time.AfterFunc(2*time.Second, func() { s.done(runs[0]); w.add(slotFreed) })
		if !s.waitIdle(time.Minute, w, none) || time.Since(begun) != 2*time.Second {
			t.Errorf("waited %v for a run that was done after 2 s", time.Since(begun))
		}
		s.start(runs)
		begun = time.Now()
		if s.waitIdle(time.Minute, w, none) || time.Since(begun) != time.Minute {
			t.Errorf("waited %v of a minute for a run that is not done", time.Since(begun))
		}
		synctest.Wait()
	})
}

func TestWakeups(t *testing.T) {
	w := newWakeups()
	w.add(scanDue)
	w.add(slotFreed)
	w.add(scanDue)
	<-w.signal
	if why := w.take(); why != scanDue|slotFreed || w.take() != 0 {
		t.Errorf("the reasons are %b", why)
	}
	w.take() // a waiter that has come for another reason
	w.add(scanDue)
	select {
	case <-w.signal:
	default:
		t.Error("a reason that was taken gives no signal when it comes again")
	}
}
