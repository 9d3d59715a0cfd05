package dispatch

import "sync/atomic"

// runStage is where a run stands.
type runStage int32

const (
	runQueued     runStage = iota // nothing was called yet
	runStarting                   // the handler is about to be called: its transaction begins
	runRunning                    // the handler was called
	runEnded                      // its outcome waits to be persisted
	runReleased                   // its outcome is persisted, and its slot is free
	runStuck                      // the handler ignores the end of its context; another outcome was given
	runLeftBehind                 // stuck, and that outcome is persisted
	runStages
)

// runEvent is what happens to a run.
type runEvent int

const (
	onStart   runEvent = iota // the handler is about to be called
	onCall                    // the handler is called, again if its transaction is tried again
	onEnd                     // an outcome is given, by the goroutine that called the handler
	onGiveUp                  // an outcome is given in place of a handler that does not return
	onPersist                 // the outcome is persisted, refused or given up
	onReturn                  // that goroutine is done with the run
	onReopen                  // a COMMIT failed, so the outcome that it was for was none
	runEvents
)

// never is for events that cannot happen to a run, or come too late.
const never = runStages

// runNext is the stage after an event.
var runNext = [runStages][runEvents]runStage{
	//              onStart      onCall      onEnd     onGiveUp  onPersist      onReturn     onReopen
	runQueued:     {runStarting, never, runEnded, runStuck, never, never, never},
	runStarting:   {never, runRunning, runEnded, runStuck, never, never, never},
	runRunning:    {never, runRunning, runEnded, runStuck, never, never, never},
	runEnded:      {never, never, never, never, runReleased, never, runRunning},
	runReleased:   {never, never, never, never, never, never, never},
	runStuck:      {never, never, never, never, runLeftBehind, runEnded, never},
	runLeftBehind: {never, never, never, never, never, runReleased, never},
}

// runState is the stage of a run. Events come from the goroutine that executes it, from timers and
// from the completer; of two that exclude each other the first one counts.
type runState struct{ stage atomic.Int32 }

func (s *runState) is() runStage { return runStage(s.stage.Load()) }

// on moves the run to the next stage. It reports from which one, and false if the event comes too
// late.
func (s *runState) on(e runEvent) (from, to runStage, ok bool) {
	for {
		from := s.is()
		to := runNext[from][e]
		if to == never {
			return from, from, false
		}
		if s.stage.CompareAndSwap(int32(from), int32(to)) {
			return from, to, true
		}
	}
}

// ended reports whether an outcome was given.
func (s *runState) ended() bool { return s.is() >= runEnded }
