package dispatch

import "sync"

// workers are goroutines that execute runs, one after the other. A new goroutine for each run would
// grow its stack each time. Waking a worker for each run would cost more than a short handler does.
// So a worker that takes a run wakes one more if another run waits and no worker is on its way.
// Slow handlers all start as soon as the scheduler lets them; quick ones need few goroutines.
type workers struct {
	mu    sync.Mutex
	queue []*run
	woken bool          // a worker is on its way to the queue
	idle  chan struct{} // wakes up a worker that has nothing to do
}

// run has workers start runs, in their order.
func (d *dispatcher) run(runs []*run) {
	w := &d.workers
	w.mu.Lock()
	w.queue = append(w.queue, runs...)
	more := w.more()
	w.mu.Unlock()
	if more {
		d.wakeWorker()
	}
}

// more reports whether the caller is to wake a worker. w.mu must be held.
func (w *workers) more() bool {
	if len(w.queue) == 0 || w.woken {
		return false
	}
	w.woken = true
	return true
}

func (d *dispatcher) wakeWorker() {
	select {
	case d.workers.idle <- struct{}{}:
	default:
		go d.work()
	}
}

// take returns the next run, or nil. woken says that the caller was woken for it.
func (d *dispatcher) take(woken bool) (r *run) {
	w := &d.workers
	w.mu.Lock()
	if woken {
		w.woken = false
	}
	if len(w.queue) > 0 {
		r, w.queue[0] = w.queue[0], nil
		if w.queue = w.queue[1:]; len(w.queue) == 0 {
			w.queue = nil
		}
	}
	more := w.more()
	w.mu.Unlock()
	if more {
		d.wakeWorker()
	}
	return r
}

// work is a worker: it ends when the dispatcher drains, or when a handler ends it with
// runtime.Goexit.
func (d *dispatcher) work() {
	// The reserve is in use, so that the collector does not halve the stack, which the next handler
	// would have to grow again. Without it a backlog was worked off at 1.04 instead of 1.2 times
	// the rate of a bare loop (table workoff of make bench, two runs each).
	var reserve [5 << 10]byte
	defer keep(&reserve)
	for {
		for r := d.take(true); r != nil; r = d.take(false) {
			r.execute()
		}
		select {
		case <-d.workers.idle:
		case <-d.drain:
			return
		}
	}
}

//go:noinline
func keep(*[5 << 10]byte) {}
