package dispatch

import (
	"context"
	"errors"

	"github.com/gorm-outbox/outbox/internal/dialect"
	"github.com/gorm-outbox/outbox/internal/store"
)

var errInterrupted = errors.New("interrupted: its process died or lost its connection to the database; what the run did is unknown")

// rescue ends or requeues the tasks whose process is gone.
func (d *dispatcher) rescue(ctx context.Context) error {
	refused := map[string]bool{}
	for {
		rescued, all, err := d.store.Rescue(ctx, 500, func(t *store.Task) (*dialect.Outcome, *dialect.Requeued) {
			next := decide(t, result{reason: ReasonInterrupted, err: errInterrupted, text: errInterrupted.Error()}, d.cfg.Backoff)
			return next.outcome, next.requeue
		})
		if err != nil {
			return err
		}
		good := 0
		for _, c := range rescued {
			if c.Err != nil {
				if !d.untaken[c.Task.ID] && !refused[c.Task.ID] {
					d.log.Warn("outbox: interrupted task cannot be rescued, retrying", "task_id", c.Task.ID, "func", c.Task.Func, "err", c.Err)
				}
				refused[c.Task.ID] = true
				continue
			}
			good++
			d.log.Warn("outbox: interrupted task rescued", "task_id", c.Task.ID, "func", c.Task.Func, "attempt", c.Task.Attempt)
		}
		if good > 0 {
			d.wake() // the next scan may be far
		}
		if all || good == 0 {
			d.untaken = refused
			return nil
		}
	}
}
