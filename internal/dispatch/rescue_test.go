package dispatch

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"
)

// A process that dies is found when it has stood still for the limit, not a heartbeat later, with
// replies that take some milliseconds more or less.
func TestLoopFindsADeadProcessWhenTheLimitEnds(t *testing.T) {
	for offset := time.Duration(0); offset < simHeartbeat; offset += simHeartbeat / 10 {
		t.Run(fmt.Sprint(offset), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := newSim(t, 0, false)
				n := s.addNode()
				looks := 0
				n.fault = func(what string) (f memFault) {
					if strings.HasPrefix(what, "SELECT id, beats") {
						looks++
						f.after = time.Duration(max(1, 30-looks)) * time.Millisecond // so a limit from reply to reply is short
					}
					return f
				}
				buried := make(chan time.Duration, 1)
				var died time.Time
				s.m.buried = func(p memProcess) { buried <- time.Since(died) }
				time.AfterFunc(3*simHeartbeat+offset, func() {
					s.m.mu.Lock()
					defer s.m.mu.Unlock()
					died = time.Now() // just after its last heartbeat: the worst moment
					s.m.rows["process dead"] = memProcess{id: "dead", beats: 7, at: died}
				})
				p := n.config()
				defer s.pools[0].Close()
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() { done <- Run(ctx, *p) }()
				took := <-buried
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
				// The observer sees the last count within a heartbeat, and for the limit from then
				// on.
				if took < simLimit || took > simLimit+simHeartbeat-offset%simHeartbeat+50*time.Millisecond {
					t.Errorf("found after %v, with a limit of %v and a heartbeat of %v", took, simLimit, simHeartbeat)
				}
				if most := 20; looks > most {
					t.Errorf("it looked %d times", looks)
				}
			})
		})
	}
}

func TestObservationsOldest(t *testing.T) {
	at := time.Now()
	seen := observations{"own": {1, at}, "a": {1, at.Add(2)}, "b": {1, at.Add(1)}}
	if since, some := seen.oldest("own"); !some || since != at.Add(1) {
		t.Errorf("%v, %v", since, some)
	}
	if _, some := (observations{"own": {1, at}}).oldest("own"); some {
		t.Error("alone, it waits for itself")
	}
}
