package outbox

import (
	"errors"
	"math"
	"testing"
	"time"
)

func TestDefaultBackoff(t *testing.T) {
	for attempt, middle := range map[int]time.Duration{
		-1: time.Second, 0: time.Second, 1: time.Second, 2: 2 * time.Second, 3: 4 * time.Second, 12: 2048 * time.Second,
		13: time.Hour, 14: time.Hour, 64: time.Hour, 10_000: time.Hour, math.MaxInt: time.Hour,
	} {
		least, most := time.Duration(math.MaxInt64), time.Duration(0)
		for range 2000 {
			d := DefaultBackoff(attempt)
			least, most = min(least, d), max(most, d)
		}
		if least < middle*3/4 || most > middle*5/4 {
			t.Errorf("attempt %d: %v to %v leaves %v ± 25 %%", attempt, least, most, middle)
		}
		if least > middle*8/10 || most < middle*12/10 {
			t.Errorf("attempt %d: only %v to %v: hardly any jitter", attempt, least, most)
		}
	}
}

func TestPermanent(t *testing.T) {
	if Permanent(nil) != nil {
		t.Error("Permanent(nil) is an error")
	}
	cause := errors.New("no such customer")
	if err := Permanent(cause); !errors.Is(err, cause) || err.Error() != cause.Error() {
		t.Errorf("got %v", err)
	}
}
