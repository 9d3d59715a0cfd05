package outbox

import "context"

// What tests need to see of one process that watches another.

// Bury is what an observer does that has read this count of heartbeats for a whole limit.
func (p *Plugin) Bury(ctx context.Context, id string, beats int64) (bool, error) {
	return p.store.bury(ctx, id, beats)
}
