package dispatch

import (
	"context"
	"runtime"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorm-outbox/outbox/internal/store"
)

// Every run starts although all others wait, also where handlers end their worker.
func TestWorkersStartEveryRun(t *testing.T) {
	const n = 50
	var started, ends atomic.Int64
	all, gone := make(chan struct{}), make(chan struct{})
	p := memoryConfig(false)
	p.Concurrency = 2 * n
	p.Functions["waits"] = ordinary(func(context.Context) error {
		if started.Add(1) == n {
			close(all)
		}
		<-all
		return nil
	})
	p.Functions["exits"] = ordinary(func(context.Context) error {
		if ends.Add(1) == n {
			close(gone)
		}
		runtime.Goexit()
		return nil
	})
	d := p.start(t)
	defer close(d.drain)
	d.lease.lastBeat = time.Now()
	var list []store.Claimed
	for i := range 2 * n {
		path := []string{"waits", "exits"}[i%2]
		list = append(list, store.Claimed{Task: &store.Task{ID: strconv.Itoa(i), Func: path, Args: "{}", ProcessID: &d.lease.id, MaxAttempts: 1, Attempt: 1}})
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
