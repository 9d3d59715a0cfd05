package outbox

import (
	"context"
	"math/rand/v2"
	"time"
)

const (
	pruneEvery = time.Minute
	pruneBatch = 1000
)

// prune deletes what history has kept long enough, in small batches, until ctx is done.
func (d *dispatcher) prune(ctx context.Context) {
	o := d.p.opts
	// Processes that start together do not prune together.
	for wait(ctx, pruneEvery/2+rand.N(pruneEvery)) == nil {
		for _, kind := range []struct {
			failed bool
			age    time.Duration
		}{{false, o.RetainSuccess}, {true, o.RetainErrors}} {
			if kind.age < 0 {
				continue
			}
			if err := d.pruneOlder(ctx, kind.failed, kind.age); err != nil && ctx.Err() == nil {
				d.outages.failed("prune history", err)
			} else {
				d.outages.recovered("prune history")
			}
		}
	}
}

func (d *dispatcher) pruneOlder(ctx context.Context, failed bool, age time.Duration) (err error) {
	defer caught(&err)
	for {
		limited, cancel := context.WithTimeout(ctx, d.statementLimit())
		n, err := d.store.d.Prune(limited, d.store.pool, failed, age, pruneBatch)
		cancel()
		if err != nil || n < pruneBatch {
			return err
		}
		if err := wait(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
}
