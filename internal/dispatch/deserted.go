package dispatch

import (
	"context"
	"maps"
)

// findDeserted logs queues with due tasks that no live process serves, once each. It waits for the
// second look in a row, because the process of a queue may just be replaced.
func (d *dispatcher) findDeserted(ctx context.Context) {
	maps.DeleteFunc(d.deserted, func(queue string, _ int) bool { return !d.poller.foreign[queue] })
	if len(d.poller.foreign) == 0 {
		return
	}
	limited, cancel := context.WithTimeout(ctx, d.cfg.statementLimit())
	defer cancel()
	served, all, err := d.store.Served(limited)
	if err != nil {
		if ctx.Err() == nil {
			d.outages.failed("look for queues without a process", err)
		}
		return
	}
	d.outages.recovered("look for queues without a process")
	for queue := range d.poller.foreign {
		if all || served[queue] {
			delete(d.deserted, queue)
			continue
		}
		if d.deserted[queue]++; d.deserted[queue] == 2 {
			d.log.Warn("outbox: tasks are due in a queue that no live process serves", "queue", queue)
		}
	}
}
