package dispatch

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/gorm-outbox/outbox/internal/dialect"
)

const (
	pruneEvery = time.Minute
	pruneBatch = 1000
)

// prune deletes what history has kept long enough, in small batches, until ctx is done.
func (d *dispatcher) prune(ctx context.Context) {
	// Processes that start together do not prune together.
	for dialect.Wait(ctx, pruneEvery/2+rand.N(pruneEvery)) == nil {
		for _, kind := range []struct {
			failed bool
			age    time.Duration
		}{{false, d.cfg.RetainSuccess}, {true, d.cfg.RetainErrors}} {
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

func (d *dispatcher) pruneOlder(ctx context.Context, failed bool, age time.Duration) error {
	for {
		limited, cancel := context.WithTimeout(ctx, d.cfg.statementLimit())
		n, err := d.store.Prune(limited, failed, age, pruneBatch)
		cancel()
		if err != nil || n < pruneBatch {
			return err
		}
		if err := dialect.Wait(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
}
