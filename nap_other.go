//go:build !linux

package outbox

import "time"

func nap(time.Duration) bool { return false }
