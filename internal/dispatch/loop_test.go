package dispatch

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorm-outbox/outbox/internal/store"
)

// bubble is synctest.Test, but not under the race detector, which now and then ends the process
// there (golang/go#78156); make test runs these tests without it.
func bubble(t *testing.T, test func(*testing.T)) {
	if racing {
		t.Skip("the race detector does not stand testing/synctest: golang/go#78156")
	}
	synctest.Test(t, test)
}

// TestLoop runs whole dispatchers under a fake clock, on a database in memory that delays, fails
// before and fails after the fact, whose processes are cut off, killed and restarted. What happens
// follows from the seed, but for the order in which goroutines run. OUTBOX_LOOP_SEED=n runs one
// seed and logs, OUTBOX_LOOP_SEEDS=n as many as you like.
//
// After each seed: every task has ended exactly once, transactional work is there exactly once,
// nothing ran too often or too early, no more was claimed than there were slots, all slots are free
// again, nobody was buried alive, handlers of a process that had lost its lease were told, and each
// Run returned within its bound.
func TestLoop(t *testing.T) {
	if only := os.Getenv("OUTBOX_LOOP_SEED"); only != "" {
		seed, err := strconv.Atoi(only)
		if err != nil {
			t.Fatal(err)
		}
		bubble(t, func(t *testing.T) {
			s := simOf(t, seed)
			s.log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
			s.run()
		})
		return
	}
	if racing {
		bubble(t, nil)
	}
	seeds, _ := strconv.Atoi(cmp.Or(os.Getenv("OUTBOX_LOOP_SEEDS"), map[bool]string{true: "200", false: "300"}[testing.Short()]))
	const workers = 4
	for w := range workers {
		t.Run(strconv.Itoa(w), func(t *testing.T) {
			t.Parallel()
			for seed := w; seed < seeds && !t.Failed(); seed += workers {
				t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
					bubble(t, func(t *testing.T) { simOf(t, seed).run() })
				})
			}
		})
	}
}

// Seed 34 found it: others may soon take the tasks of a process over that is silent, so its
// handlers have been told to stop; a claim whose reply came after that started another.
func TestLoopStartsNothingAfterItsLease(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newSim(t, 0, false)
		begun := time.Now()
		s.addNode().fault = func(what string) (f memFault) {
			since := time.Since(begun)
			switch beat := strings.Contains(what, "beat_at = {now}"); {
			case beat && since >= time.Second && since < 8*time.Second: // the first one is at 0 s
				f.err = errLost
			case what == "CLAIM" && since < 8*time.Second:
				f.after = 3 * simStatement / 4
			}
			return f
		}
		s.create("task", "plain", simLease-time.Second/2, func(m *store.Task) { m.MaxAttempts = 1 })
		s.run()
	})
}

// A claim is not cut short, so its reply may come when the context of Run has ended.
func TestLoopStartsNothingAfterItsContext(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newSim(t, 0, false)
		n := s.addNode()
		n.fault = func(what string) (f memFault) {
			if what == "CLAIM" {
				f.after = simStatement / 2
			}
			return f
		}
		s.create("task", "plain", 0, nil)
		p := n.config()
		defer s.pools[0].Close()
		ctx, cancel := context.WithTimeout(t.Context(), simStatement/4)
		defer cancel()
		if err := Run(ctx, *p); err != nil {
			t.Fatal(err)
		}
		tx := s.m.begin()
		left := tasks(tx)
		if len(left) != 1 || left[0].State != store.Pending || left[0].Attempt != 1 || left[0].Uncounted != 1 || s.tasks["task"].runs != 0 {
			t.Errorf("it ran %d times, and is %+v", s.tasks["task"].runs, left)
		}
	})
}

// While the lease is over nothing is claimed, and whatever wakes the loop meanwhile is used up. So
// there has to be a look afterwards, also when the process was declared dead and has begun anew.
func TestLoopLooksAgainAfterItsLease(t *testing.T) {
	for _, buried := range []bool{false, true} {
		t.Run(fmt.Sprintf("buried %v", buried), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := newSim(t, 0, false)
				begun := time.Now()
				n := s.addNode()
				n.fault = func(what string) (f memFault) {
					since := time.Since(begun)
					if strings.Contains(what, "beat_at = {now}") && since > time.Second && since < 8*time.Second {
						f.err = errLost
					}
					return f
				}
				s.create("task", "quick", 5*time.Second, nil)
				p := n.config()
				defer s.pools[0].Close()
				p.Schedule = every(time.Hour)
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Hour)
				defer cancel()
				ran := time.Duration(0)
				p.Functions["quick"] = ordinary(func(context.Context) error { ran = time.Since(begun); cancel(); return nil })
				if buried {
					time.AfterFunc(7*time.Second, func() {
						s.m.mu.Lock()
						defer s.m.mu.Unlock()
						maps.DeleteFunc(s.m.rows, func(key string, _ any) bool { return strings.HasPrefix(key, "process ") })
					})
				}
				if err := Run(ctx, *p); err != nil {
					t.Error(err)
				}
				if ran == 0 || ran > 20*time.Second {
					t.Errorf("a task that was due after 5 s ran after %v", ran)
				}
			})
		})
	}
}
