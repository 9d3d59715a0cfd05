package outbox

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// RunDue runs what is due now, once, and returns how many runs there were. Tasks that become due
// meanwhile, retries included, are left for the next call. It fails when the database does, not
// when a handler does: how tasks ended is in history. When ctx ends, it drains as Run does and
// returns ctx's error.
func (p *Plugin) RunDue(ctx context.Context) (int, error) {
	d, stop, err := p.begin(ctx, false)
	if err != nil {
		return 0, fmt.Errorf("outbox: run due: %w", err)
	}
	d.seen = map[string]bool{}
	grace := p.opts.ShutdownGrace
	if err = d.runDue(ctx); err == nil {
		grace = 0
	}
	if len(d.held) > 0 {
		limited, cancel := d.outlive(ctx)
		_, back := d.store.write(limited, nil, d.held)
		cancel()
		err = errors.Join(err, back)
	}
	if left := d.shutDown(grace); err == nil {
		err = left
	}
	stop()
	if err != nil {
		return int(d.ran.Load()), fmt.Errorf("outbox: run due: %w", err)
	}
	return int(d.ran.Load()), nil
}

// runDue claims and runs until nothing is left that was due when it began.
func (d *dispatcher) runDue(ctx context.Context) error {
	now, err := d.store.now(ctx)
	if err != nil {
		return err
	}
	// Too short-lived to watch others: only what is long dead is taken over.
	if _, err := d.store.buryOlder(ctx, now.Add(-3*d.p.opts.HeartbeatLimit)); err != nil {
		return err
	}
	if err := d.takeOver(ctx); err != nil {
		return err
	}
	if err := d.unpark(ctx); err != nil {
		return err
	}
	if now, err = d.store.now(ctx); err != nil {
		return err
	}
	if err := d.probe(ctx); err != nil {
		return err
	}
	// A database's clock may have milliseconds only. What is put back after this one does not come
	// again in this call.
	if d.p.opts.Clock == nil {
		if err := wait(ctx, time.Millisecond); err != nil {
			return err
		}
	}
	until := d.store.d.Time(now)
	for d.backlog.size() > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, asked, err := d.claim(ctx, until)
		if err != nil {
			return err
		}
		if asked && (n > 0 || d.mayHaveMore()) && d.room() > 0 {
			continue
		}
		// Where those that are left behind have every slot, nothing more can be started.
		if n == 0 && (!d.mayHaveMore() || d.room() == 0) && d.rests((*run).leftBehind) {
			pause, again := d.lookAgain()
			if !again || d.room() == 0 {
				break
			}
			if err := errors.Join(wait(ctx, pause), d.probe(ctx)); err != nil {
				return err
			}
			continue
		}
		if n > 0 {
			d.passedOver = 0
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-d.slotFree:
		}
	}
	for range (d.backlog.size() + maxParked - 1) / maxParked {
		d.park(ctx)
	}
	return ctx.Err()
}
