package dispatch

import (
	"context"
	"errors"
	"time"

	"github.com/gorm-outbox/outbox/internal/dialect"
)

// RunDue runs what is due now, once, and returns how many runs there were.
func RunDue(ctx context.Context, cfg Config) (int, error) {
	d, stop, err := begin(ctx, cfg, false)
	if err != nil {
		return 0, err
	}
	d.seen = map[string]bool{}
	grace := cfg.ShutdownGrace
	if err = d.runDue(ctx); err == nil {
		grace = 0
	}
	if len(d.held) > 0 {
		limited, cancel := outlive(ctx, cfg.statementLimit())
		_, back := d.store.Complete(limited, nil, d.held)
		cancel()
		err = errors.Join(err, back)
	}
	if left := d.drainRuns(grace); err == nil {
		err = left
	}
	stop()
	return int(d.ran.Load()), err
}

// runDue claims and runs until nothing is left that was due when it began.
func (d *dispatcher) runDue(ctx context.Context) error {
	now, err := d.store.Now(ctx)
	if err != nil {
		return err
	}
	// RunDue is too short to watch other processes, so it rescues only from those that are long
	// dead.
	if _, err := d.store.ExpireOlder(ctx, now.Add(-3*d.cfg.HeartbeatLimit)); err != nil {
		return err
	}
	if err := d.rescue(ctx); err != nil {
		return err
	}
	if err := d.unpark(ctx); err != nil {
		return err
	}
	if now, err = d.store.Now(ctx); err != nil {
		return err
	}
	if err := d.pollOnce(ctx); err != nil {
		return err
	}
	// A database's clock may have milliseconds only. A task that is requeued after this one does
	// not come again in this call.
	if !d.cfg.TestClock {
		if err := dialect.Wait(ctx, time.Millisecond); err != nil {
			return err
		}
	}
	until := d.store.Dialect.Time(now)
	for d.claimer.cursors.size() > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, asked, err := d.claimer.claim(ctx, until)
		if err != nil {
			return err
		}
		if asked && (n > 0 || d.claimer.mayHaveMore()) && d.slots.free() > 0 {
			continue
		}
		// Handlers that were left behind may hold every slot: then nothing more can start.
		if n == 0 && (!d.claimer.mayHaveMore() || d.slots.free() == 0) && d.slots.idle((*run).leftBehind) {
			pause, again := d.lookAgain()
			if !again || d.slots.free() == 0 {
				break
			}
			if err := errors.Join(dialect.Wait(ctx, pause), d.pollOnce(ctx)); err != nil {
				return err
			}
			continue
		}
		if n > 0 {
			d.poller.passedOver = 0
		}
		if err := d.waitForSlot(ctx); err != nil {
			return err
		}
	}
	for range (d.claimer.cursors.size() + maxParked - 1) / maxParked {
		d.park(ctx)
	}
	return ctx.Err()
}

// waitForSlot waits until a slot may have become free. No loop runs, so the wake-ups are for it.
func (d *dispatcher) waitForSlot(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-d.wakeups.signal:
			if d.wakeups.take()&slotFreed != 0 {
				return nil
			}
		}
	}
}
