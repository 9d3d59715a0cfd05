package dispatch

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/google/uuid"

	"github.com/gorm-outbox/outbox/internal/dialect"
	"github.com/gorm-outbox/outbox/internal/store"
	"github.com/gorm-outbox/outbox/internal/text"
)

// A process proves with its heartbeats that it is alive. watch.go says how other processes find out
// that it is not.

// register inserts this process's row, under a new incarnation.
func (d *dispatcher) register(ctx context.Context) error {
	id, err := uuid.NewV7()
	if err != nil {
		return fmt.Errorf("make an id: %w", err)
	}
	host, _ := os.Hostname()
	p := store.Process{ID: id.String(), Host: text.Sanitize(host, 255), PID: os.Getpid(), Functions: d.claimer.funcs,
		Queues: d.cfg.Queues, Slots: d.slots.total}
	begun := time.Now()
	// Not cut short by a shutdown: a row that is there is to be known, and removed.
	limited, cancel := outlive(ctx, d.cfg.statementLimit())
	defer cancel()
	if err := d.store.Register(limited, p); err != nil {
		return err
	}
	d.lease.begin(p.ID, begun)
	return nil
}

// leaseExpired is called when the lease has expired. Other processes may soon rescue the tasks, so
// handlers are told to stop.
func (d *dispatcher) leaseExpired() {
	if d.lease.valid() {
		return // a heartbeat has renewed it meanwhile
	}
	if d.beating.Load() && d.store.Dialect.Serial() {
		d.lease.postponeExpiry() // it waits for the only write lock, or has it: see beat
		return
	}
	d.log.Error("outbox: lease expired without a heartbeat, cancelling handlers", "for", d.lease.length)
	d.loseRuns()
}

// heartbeats runs until ctx is done: beat, then, if it is to watch, look at the others.
func (d *dispatcher) heartbeats(ctx context.Context, watch bool) {
	tick := time.NewTicker(d.cfg.Heartbeat)
	defer tick.Stop()
	// A process that did not know this one yet may park tasks that this one can run, just after the
	// first look for parked tasks.
	again := time.NewTimer(min(d.cfg.Heartbeat, time.Second))
	defer again.Stop()
	// A process is dead when the limit ends, not when the observer happens to beat after that.
	look := time.NewTimer(d.cfg.HeartbeatLimit)
	defer look.Stop()
	seen := observations{}
	last := time.Now()
	for {
		d.beating.Store(true)
		good := d.beat(ctx)
		// A process that was frozen, perhaps together with the others, has not watched meanwhile.
		if !good || time.Since(last) >= d.lease.length {
			clear(seen)
		}
		last = time.Now()
		if good && watch {
			d.observe(ctx, seen)
		}
		if watch && d.cfg.SingleProcess {
			d.keepSingle(ctx)
		}
		d.beating.Store(false)
		look.Stop()
		if since, some := seen.oldest(d.lease.owner()); some {
			look.Reset(time.Until(since.Add(d.cfg.HeartbeatLimit)))
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-again.C:
		case <-look.C:
		}
	}
}

// beat reports whether it succeeded.
func (d *dispatcher) beat(ctx context.Context) bool {
	begun := time.Now()
	limited, cancel := context.WithTimeout(ctx, d.cfg.statementLimit())
	alive, err := d.store.Beat(limited, d.lease.owner())
	cancel()
	if ctx.Err() != nil {
		return false
	}
	expired := err == nil && !alive
	if expired {
		d.log.Warn("outbox: this process was declared dead and its claims are lost, re-registering under a new id", "process", d.lease.owner())
		d.loseRuns()
		err = d.register(ctx)
	}
	if err != nil {
		d.outages.failed("heartbeat", err)
		if d.store.Dialect.Serial() && (dialect.Classify(err) == dialect.Busy || d.slots.inTransaction()) {
			// The transaction with the only write lock keeps other processes from a rescue, too. So
			// a beat that is late because of the lock is no death.
			d.lease.postponeExpiry()
		}
		return false
	}
	d.outages.recovered("heartbeat")
	if hadExpired := d.lease.renew(begun); expired || hadExpired {
		d.wake() // nothing was claimed meanwhile
	}
	return true
}
