package dispatch

import (
	"context"

	"github.com/gorm-outbox/outbox/internal/store"
)

// maxParked bounds the partitions that one statement looks at.
const maxParked = 100

// park takes due tasks out of the claim's way that no live process can run.
func (d *dispatcher) park(ctx context.Context) {
	limited, cancel := context.WithTimeout(ctx, d.cfg.statementLimit())
	defer cancel()
	partitions := d.claimer.cursors.atHeads(maxParked)
	if len(partitions) == 0 {
		return
	}
	funcs, err := d.store.Park(limited, partitions)
	if err != nil {
		if ctx.Err() == nil {
			d.outages.failed("park", err)
		}
		return
	}
	d.outages.recovered("park")
	for _, f := range funcs {
		if !d.unserved[f] {
			d.unserved[f] = true
			d.log.Warn("outbox: tasks parked, no live process that serves their queue has registered their function", "func", f)
		}
	}
}

// unpark brings back parked tasks that this process can run.
func (d *dispatcher) unpark(ctx context.Context) error {
	total := int64(0)
	for {
		n, err := d.store.Unpark(ctx, d.claimer.funcs, d.cfg.Queues)
		total += n
		if err == nil && n == store.MaxRows {
			continue
		}
		if total > 0 {
			d.log.Info("outbox: parked tasks return", "count", total)
			d.wake()
		}
		return err
	}
}
