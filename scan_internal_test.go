package outbox

import (
	"context"
	"slices"
	"testing"
	"time"
)

// The wall clock jumps while the dispatcher waits for its next scan. The monotonic clock, by which
// the bubble's time goes, does not.
func TestScanWhileTheWallClockMoves(t *testing.T) {
	for _, c := range []struct {
		name, spec  string
		after, jump time.Duration // the wall clock jumps once, so long after the start
		want        []time.Duration
	}{
		{"interval, back", "@every 1s", 1500 * time.Millisecond, -time.Hour, seconds(1, 2, 3)},
		{"interval, forth", "@every 1s", 1500 * time.Millisecond, time.Hour, seconds(1, 2, 3)},
		{"long interval, back", "@every 2h", time.Hour, -time.Hour, seconds(7200, 14400)},
		{"cron, back", "*/10 * * * * *", 15 * time.Second, -time.Hour, seconds(10, 20, 30)},
		{"cron, forth", "*/10 * * * * *", 15 * time.Second, time.Hour, seconds(10, 20, 30)},
		// It follows the wall clock, but never waits longer than it was to.
		{"daily, back", "0 3 * * *", 90 * time.Minute, -time.Hour, seconds(3*3600, 4*3600)},
		{"daily, forth", "0 3 * * *", 90*time.Minute + time.Second, 2 * time.Hour, seconds(91*60, 91*60+23.5*3600-60)},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s, err := parseSchedule(c.spec)
				if err != nil {
					t.Fatal(err)
				}
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
		if err := untilNext(ctx, interval(time.Hour), time.Now); err == nil || time.Since(begun) != 90*time.Second {
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
		p := n.plugin()
		defer s.pools[0].Close()
		var err error
		if p.schedule, err = parseSchedule("@every 24h"); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 48*time.Hour)
		defer cancel()
		ran := time.Duration(0)
		p.Handle("quick", func(context.Context) error { ran = time.Since(begun); cancel(); return nil })
		if err := p.Run(ctx); err != nil {
			t.Error(err)
		}
		if ran < 5*time.Hour || ran > 5*time.Hour+2*time.Second {
			t.Errorf("a task that was due after 5 h ran after %v", ran)
		}
	})
}
