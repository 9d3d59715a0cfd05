package dispatch

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/robfig/cron/v3"
)

// The wall clock jumps while the dispatcher waits for its next scan. The monotonic clock, by which
// the bubble's time goes, does not.
func TestScanWhileTheWallClockMoves(t *testing.T) {
	for _, c := range []struct {
		name        string
		schedule    Schedule
		after, jump time.Duration // the wall clock jumps once, so long after the start
		want        []time.Duration
	}{
		{"interval, back", every(time.Second), 1500 * time.Millisecond, -time.Hour, seconds(1, 2, 3)},
		{"interval, forth", every(time.Second), 1500 * time.Millisecond, time.Hour, seconds(1, 2, 3)},
		{"long interval, back", every(2 * time.Hour), time.Hour, -time.Hour, seconds(7200, 14400)},
		{"cron, back", cronSpec(t, "*/10 * * * * *"), 15 * time.Second, -time.Hour, seconds(10, 20, 30)},
		{"cron, forth", cronSpec(t, "*/10 * * * * *"), 15 * time.Second, time.Hour, seconds(10, 20, 30)},
		// It follows the wall clock, but never waits longer than it was to.
		{"daily, back", cronSpec(t, "0 3 * * *"), 90 * time.Minute, -time.Hour, seconds(3*3600, 4*3600)},
		{"daily, forth", cronSpec(t, "0 3 * * *"), 90*time.Minute + time.Second, 2 * time.Hour, seconds(91*60, 91*60+23.5*3600-60)},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := c.schedule
				begun := time.Now() // of the bubble: midnight UTC
				now := func() time.Time {
					if n := time.Now().UTC(); n.Sub(begun) < c.after {
						return n
					}
					return time.Now().UTC().Add(c.jump)
				}
				var got []time.Duration
				for range c.want {
					if err := untilNext(t.Context(), s, now); err != nil {
						t.Fatal(err)
					}
					got = append(got, time.Since(begun))
				}
				if !slices.Equal(got, c.want) {
					t.Errorf("scans after %v, want %v", got, c.want)
				}
			})
		})
	}
}

// cronSpec is a schedule that follows the wall clock.
func cronSpec(t *testing.T, spec string) Schedule {
	t.Helper()
	s, err := cron.NewParser(cron.SecondOptional | cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow).Parse(spec)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func seconds(list ...float64) (out []time.Duration) {
	for _, s := range list {
		out = append(out, time.Duration(s*float64(time.Second)))
	}
	return out
}

func TestScanWaitEndsWithItsContext(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
		defer cancel()
		begun := time.Now()
		if err := untilNext(ctx, every(time.Hour), time.Now); err == nil || time.Since(begun) != 90*time.Second {
			t.Errorf("%v after %v", err, time.Since(begun))
		}
	})
}

// A start time that a scan has seen is met, however rare the scans are and however far away it is.
func TestLoopMeetsAStartTimeBeyondTheNextScan(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newSim(t, 0, false)
		n := s.addNode()
		n.fault = func(string) (f memFault) { return f }
		begun := time.Now()
		s.create("task", "quick", 5*time.Hour+time.Second, nil)
		p := n.config()
		defer s.pools[0].Close()
		p.Schedule = every(24 * time.Hour)
		ctx, cancel := context.WithTimeout(t.Context(), 48*time.Hour)
		defer cancel()
		ran := time.Duration(0)
		p.Functions["quick"] = ordinary(func(context.Context) error { ran = time.Since(begun); cancel(); return nil })
		if err := Run(ctx, *p); err != nil {
			t.Error(err)
		}
		if ran < 5*time.Hour || ran > 5*time.Hour+2*time.Second {
			t.Errorf("a task that was due after 5 h ran after %v", ran)
		}
	})
}
