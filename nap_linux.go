package outbox

import (
	"syscall"
	"time"
)

// nap sleeps for less than a millisecond; false means that it is for a timer. While a process has nothing else to do, Go's
// timers wait for whole milliseconds (golang/go#44343), which is as long as all else takes from a commit to its handler.
func nap(d time.Duration) bool {
	if d >= time.Millisecond {
		return false
	}
	if d > 0 {
		t := syscall.NsecToTimespec(int64(d))
		_ = syscall.Nanosleep(&t, nil) // a signal may end it early
	}
	return true
}
