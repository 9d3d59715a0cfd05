package dispatch

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/gorm-outbox/outbox/internal/store"
)

// owner is a dispatcher that owns a running task, without a run of it.
func owner(t *testing.T, attempt int) (d *dispatcher, row func() store.Task) {
	t.Helper()
	s := newSim(t, 0, false)
	n := s.addNode()
	n.fault = func(string) memFault { return memFault{} }
	p := n.config()
	t.Cleanup(func() { _ = s.pools[0].Close() })
	d = p.start(t)
	d.lease.begin("p", time.Now())
	d.recovery.unknown = true
	id := d.lease.owner()
	tx := s.m.begin()
	tx.put("process p", memProcess{id: "p", beats: 1, at: time.Now()})
	tx.put("task task", store.Task{ID: "task", Func: "f", State: store.Running, Attempt: attempt, MaxAttempts: 9, Version: 7, ProcessID: &id})
	tx.end(true)
	return d, func() store.Task {
		tx := s.m.begin()
		defer tx.end(false)
		row, _ := tx.get("task task").(store.Task)
		return row
	}
}

// A process that was frozen while a transaction began sees that its last heartbeat is too old
// before its timers do.
func TestTransactionThatBeganTooLateRunsNothing(t *testing.T) {
	for _, late := range []bool{false, true} {
		t.Run(fmt.Sprintf("late %v", late), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := newSim(t, 0, false)
				n := s.addNode()
				var d *dispatcher
				n.fault = func(what string) (f memFault) {
					if late && strings.HasPrefix(what, "SAVEPOINT") {
						d.lease.mu.Lock()
						d.lease.lastBeat = time.Now().Add(-time.Hour)
						d.lease.mu.Unlock()
					}
					return f
				}
				p := n.config()
				defer s.pools[0].Close()
				called := false
				p.Functions["mine"] = inTransaction(func(context.Context, *Tx) error { called = true; return errors.New("no") })
				d = p.start(t)
				d.lease.begin("p", time.Now())
				r := d.newRun(store.Claimed{Task: &store.Task{ID: "task", Func: "mine", Attempt: 1, MaxAttempts: 1, Version: 7, ProcessID: &d.lease.id}})
				r.state.on(onStart) // as execute does
				if try := r.tryTransaction(reflect.Value{}); called == late || try.result.giveBack != late || try.end != txRolledBack {
					t.Errorf("called: %v, %+v", called, try)
				}
			})
		})
	}
}

// A claim whose reply was lost has not run, though an earlier claim of the same task has.
func TestLaterClaimIsNotTakenForTheOneThatRan(t *testing.T) {
	for _, tt := range []struct {
		name      string
		ran       int // the attempt whose outcome was refused
		uncounted int
	}{
		{"the claim that ran", 3, 0},
		{"a later one", 2, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				d, row := owner(t, 3)
				d.recovery.outcomeLost(&store.Task{ID: "task", Attempt: tt.ran})
				d.recovery.run(t.Context())
				if is := row(); is.State != store.Pending || is.Uncounted != tt.uncounted {
					t.Errorf("it is %s, %d runs uncounted, want %d", is.State, is.Uncounted, tt.uncounted)
				}
			})
		})
	}
}

// A run of an earlier claim that has not returned says nothing about a later one.
func TestRunOfAnEarlierClaimKeepsNoLaterOne(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d, row := owner(t, 3)
		d.slots.start([]*run{d.newRun(store.Claimed{Task: &store.Task{ID: "task", Attempt: 2}})})
		d.recovery.run(t.Context())
		if is := row(); is.State != store.Pending || is.Uncounted != 1 {
			t.Errorf("%+v", is)
		}
	})
}

func TestWhatHadRunIsForgotten(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d, _ := owner(t, 3)
		d.recovery.unknown = false
		d.recovery.outcomeLost(&store.Task{ID: "another's", Attempt: 1})
		d.recovery.outcomeLost(&store.Task{ID: "task", Attempt: 3})
		d.recovery.run(t.Context()) // ends the run of "task"
		if len(d.recovery.outcomeless) != 1 || d.recovery.outcomeless["task"] != 3 {
			t.Errorf("after the first: %v", d.recovery.outcomeless)
		}
		d.recovery.run(t.Context())
		if len(d.recovery.outcomeless) != 0 {
			t.Errorf("after the second: %v", d.recovery.outcomeless)
		}
	})
}
