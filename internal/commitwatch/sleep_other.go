//go:build !linux

package commitwatch

import "time"

func sleepBriefly(time.Duration) bool { return false }
