package dispatch

import (
	"context"
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
