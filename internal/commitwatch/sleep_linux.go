package commitwatch

import (
	"syscall"
	"time"
)

// sleepBriefly sleeps for less than a millisecond; false means that a timer should be used instead.
// While a process is idle, Go's timers wait for whole milliseconds (golang/go#44343), which is as
// long as everything else between a commit and its handler.
func sleepBriefly(d time.Duration) bool {
	if d >= time.Millisecond {
		return false
	}
	if d > 0 {
		t := syscall.NsecToTimespec(int64(d))
		_ = syscall.Nanosleep(&t, nil) // a signal may end it early
	}
	return true
}
