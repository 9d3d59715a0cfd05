package outbox

import (
	"context"
	"log/slog"
	"runtime"
	"strconv"
	"sync/atomic"
	"testing"
	"time"
)

// Every run starts although all others wait, also where handlers end their worker.
func TestWorkersStartEveryRun(t *testing.T) {
	const n = 50
	var started, ends atomic.Int64
	all := make(chan struct{})
	p := New(Options{Concurrency: 2 * n, Logger: slog.New(slog.DiscardHandler)})
	p.Handle("waits", func(context.Context) error {
		if started.Add(1) == n {
			close(all)
		}
		<-all
		return nil
	})
	p.Handle("exits", func(context.Context) error {
		ends.Add(1)
		runtime.Goexit()
		return nil
	})
	d := p.newDispatcher(&store{d: memDialect{m: newMemory(false)}})
	defer d.lapse.Stop()
	defer d.nextDue.Stop()
	defer close(d.drain)
	d.lastBeat = time.Now()
	var list []claimed
	for i := range 2 * n {
		path := []string{"waits", "exits"}[i%2]
		list = append(list, claimed{task: &TaskModel{ID: strconv.Itoa(i), Func: path, Args: JSON("{}"), ProcessID: &d.id, MaxAttempts: 1, Attempt: 1}})
	}
	d.start(list[:n])
	d.start(list[n:])
	select {
	case <-all:
	case <-time.After(30 * time.Second):
		t.Fatalf("%d of %d have started that wait for each other, %d others have ended", started.Load(), n, ends.Load())
	}
	for deadline := time.Now().Add(30 * time.Second); ends.Load() < n; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d have ended", ends.Load(), n)
		}
	}
}
