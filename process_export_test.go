package outbox

import (
	"context"

	"github.com/gorm-outbox/outbox/internal/dialect"
	"github.com/gorm-outbox/outbox/internal/store"
)

// What tests need to see of one process that watches another.

// Expire is what an observer does that has read this count of heartbeats for a whole limit.
func (p *Plugin) Expire(ctx context.Context, id string, beats int64) (bool, error) {
	return p.store.Expire(ctx, id, beats)
}

// Park is what a process does that finds nothing to claim in the default partition, as a part of a
// longer transaction.
func (p *Plugin) Park(ctx context.Context, tx dialect.Conn) ([]string, error) {
	return p.store.Dialect.Park(ctx, tx, []dialect.Partition{{Queue: defaultQueue, Priority: defaultPriority}}, store.MaxRows)
}
