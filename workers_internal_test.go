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
	all, gone := make(chan struct{}), make(chan struct{})
	p := New(Options{Concurrency: 2 * n, Logger: slog.New(slog.DiscardHandler)})
	p.Handle("waits", func(context.Context) error {
		if started.Add(1) == n {
			close(all)
		}
		<-all
		return nil
	})
	p.Handle("exits", func(context.Context) error {
		if ends.Add(1) == n {
			close(gone)
		}
		runtime.Goexit()
		return nil
	})
	d := p.newDispatcher(&store{d: memDialect{m: newMemory(false)}})
	defer d.lease.stop()
	defer d.poller.nextDue.Stop()
	defer close(d.drain)
	d.lease.lastBeat = time.Now()
	var list []claimed
	for i := range 2 * n {
		path := []string{"waits", "exits"}[i%2]
		list = append(list, claimed{task: &TaskModel{ID: strconv.Itoa(i), Func: path, Args: JSON("{}"), ProcessID: &d.lease.id, MaxAttempts: 1, Attempt: 1}})
	}
	d.start(list[:n])
	d.start(list[n:])
	for _, c := range []chan struct{}{all, gone} {
		select {
		case <-c:
		case <-time.After(30 * time.Second):
			t.Fatalf("%d of %d have started that wait for each other, %d of as many others have ended", started.Load(), n, ends.Load())
		}
	}
}
