package dispatch

import (
	"sync"
	"time"
)

// slots says which runs hold a slot of this process, and how many slots are reserved for claims
// under way. A run holds its slot until its outcome is persisted and its handler has returned.
type slots struct {
	total int

	mu            sync.Mutex
	runs          map[*run]struct{}
	reserved      int
	transactional int // of the runs
}

func newSlots(total int) *slots { return &slots{total: total, runs: map[*run]struct{}{}} }

// free is the number of slots that no run holds and no claim under way may fill.
func (s *slots) free() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.freeLocked()
}

// s.mu must be held.
func (s *slots) freeLocked() int { return max(0, s.total-len(s.runs)-s.reserved) }

// taken is the number of runs.
func (s *slots) taken() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.runs)
}

// reserve takes every free slot for a claim.
func (s *slots) reserve() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n = s.freeLocked()
	s.reserved += n
	return n
}

// transfer reserves slots whose runs are about to leave them, for the tasks that were claimed in
// their place.
func (s *slots) transfer(n int) { s.release(-n) }

// release ends a reservation. The runs of what was claimed have started before.
func (s *slots) release(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reserved -= n
}

func (s *slots) start(runs []*run) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range runs {
		s.runs[r] = struct{}{}
		if r.transactional() {
			s.transactional++
		}
	}
}

func (s *slots) done(r *run) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.runs, r)
	if r.transactional() {
		s.transactional--
	}
}

// inTransaction reports whether a transactional task holds a slot.
func (s *slots) inTransaction() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.transactional > 0
}

// each calls f for every run, under the lock.
func (s *slots) each(f func(*run)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for r := range s.runs {
		f(r)
	}
}

// idle reports whether no claim is under way and no run holds a slot but those that are left out.
func (s *slots) idle(leaveOut func(*run) bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reserved > 0 {
		return false // what was claimed may be no run yet
	}
	for r := range s.runs {
		if !leaveOut(r) {
			return false
		}
	}
	return true
}

// waitIdle waits until idle. The loop, whose wake-ups it takes, has ended.
func (s *slots) waitIdle(limit time.Duration, w *wakeups, leaveOut func(*run) bool) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		if s.idle(leaveOut) {
			return true
		}
		select {
		case <-w.signal:
			w.take()
		case <-timer.C:
			return s.idle(leaveOut)
		}
	}
}
