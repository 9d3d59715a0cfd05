package dispatch

import (
	"context"
	"strconv"
	"testing"
	"time"

	"github.com/gorm-outbox/outbox/internal/store"
)

// BenchmarkRun runs 100 claimed tasks, from the claim's reply to the free slots; nothing is
// written.
func BenchmarkRun(b *testing.B) {
	cfg := memoryConfig(false)
	cfg.Functions["speed.run"] = ordinary(func(context.Context) error { return nil })
	d := cfg.start(b)
	defer close(d.drain)
	d.lease.lastBeat = time.Now().Add(time.Hour)
	list, done := make([]store.Claimed, 100), map[string]bool{}
	for i := range list {
		list[i].Task = &store.Task{ID: strconv.Itoa(i), Func: "speed.run", ProcessID: &d.lease.id, MaxAttempts: 1, Attempt: 1}
		done[list[i].Task.ID] = true
	}
	b.ReportAllocs()
	for b.Loop() {
		d.start(list)
		for n := 0; n < len(list); {
			group := d.completer.take()
			if n += len(group); len(group) == 0 {
				<-d.completer.signal
			}
			d.completer.settle(group, store.Let{IDs: done})
			d.completer.written()
		}
		for d.slots.free() < d.slots.total {
			<-d.wakeups.signal
			d.wakeups.take()
		}
	}
}
