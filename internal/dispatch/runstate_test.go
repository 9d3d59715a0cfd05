package dispatch

import (
	"fmt"
	"testing"
)

// Each way through a run, as its events happen, ends with a free slot.
func TestRunStages(t *testing.T) {
	for _, c := range []struct {
		name   string
		events []runEvent
		want   []runStage
	}{
		{"the handler returns", []runEvent{onStart, onCall, onEnd, onReturn, onPersist},
			[]runStage{runStarting, runRunning, runEnded, never, runReleased}},
		{"the outcome is persisted before the goroutine is done", []runEvent{onStart, onCall, onEnd, onPersist, onReturn},
			[]runStage{runStarting, runRunning, runEnded, runReleased, never}},
		{"it goes back without a call", []runEvent{onEnd, onPersist, onReturn},
			[]runStage{runEnded, runReleased, never}},
		{"a stuck handler returns after its outcome was persisted", []runEvent{onStart, onCall, onGiveUp, onPersist, onEnd, onReturn},
			[]runStage{runStarting, runRunning, runStuck, runLeftBehind, never, runReleased}},
		{"a stuck handler returns before that", []runEvent{onStart, onCall, onGiveUp, onEnd, onReturn, onPersist},
			[]runStage{runStarting, runRunning, runStuck, never, runEnded, runReleased}},
		{"given up before it was called", []runEvent{onStart, onGiveUp, onCall, onReturn, onPersist},
			[]runStage{runStarting, runStuck, never, runEnded, runReleased}},
		{"given up after it had returned", []runEvent{onStart, onCall, onEnd, onGiveUp, onPersist},
			[]runStage{runStarting, runRunning, runEnded, never, runReleased}},
		{"a transaction is tried again", []runEvent{onStart, onCall, onCall, onEnd, onReopen, onCall, onEnd, onPersist},
			[]runStage{runStarting, runRunning, runRunning, runEnded, runRunning, runRunning, runEnded, runReleased}},
		{"a COMMIT fails when its run cannot be given up", []runEvent{onStart, onCall, onEnd, onGiveUp, onReopen, onGiveUp},
			[]runStage{runStarting, runRunning, runEnded, never, runRunning, runStuck}},
		{"an outcome is persisted once", []runEvent{onEnd, onPersist, onPersist},
			[]runStage{runEnded, runReleased, never}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var s runState
			for i, e := range c.events {
				before := s.is()
				from, to, ok := s.on(e)
				if want := c.want[i]; ok != (want != never) || from != before || ok && (to != want || s.is() != want) || !ok && s.is() != before {
					t.Fatalf("event %d: from stage %d to %d, %v; want stage %d", i, from, to, ok, want)
				}
			}
		})
	}
}

// Whatever else happens, an outcome that was given is persisted, and a run that has ended frees its
// slot.
func TestRunStagesHaveAWayOut(t *testing.T) {
	for stage := range runStages {
		for _, order := range [][]runEvent{{onEnd, onPersist, onReturn}, {onEnd, onReturn, onPersist}} {
			var s runState
			s.stage.Store(int32(stage))
			for _, e := range order {
				s.on(e)
			}
			if s.is() != runReleased {
				t.Errorf("from stage %d, %v leads to stage %d", stage, fmt.Sprint(order), s.is())
			}
		}
	}
}
