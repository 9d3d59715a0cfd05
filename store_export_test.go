package outbox

import (
	"context"
	"database/sql"
	"maps"
	"slices"

	"github.com/gorm-outbox/outbox/internal/dialect"
	"github.com/gorm-outbox/outbox/internal/store"
)

// What tests need to see of the statements that change state.

// Statements are those of the plugin's database, and the pool they run on.
func (p *Plugin) Statements() (dialect.Dialect, *sql.DB) { return p.store.Dialect, p.store.Pool }

// Intercept puts other statements in the place of the plugin's. It belongs before Run.
func (p *Plugin) Intercept(wrap func(dialect.Dialect) dialect.Dialect) {
	p.store.Dialect = wrap(p.store.Dialect)
}

// Rescue gives back every task whose process is gone, and returns their ids.
func (p *Plugin) Rescue(ctx context.Context) (ids []string, err error) {
	rescued, _, err := p.store.Rescue(ctx, 1000, func(t *store.Task) (*dialect.Outcome, *dialect.Requeued) {
		return nil, &dialect.Requeued{ID: t.ID, Version: t.Version, Process: t.Owner(), Uncounted: 1}
	})
	for _, c := range rescued {
		ids = append(ids, c.Task.ID)
	}
	return ids, err
}

// Finish writes an outcome as the process that ran the task does, and returns the ids that the
// fence let through.
func (p *Plugin) Finish(ctx context.Context, o dialect.Outcome) ([]string, error) {
	done, err := p.store.Complete(ctx, []dialect.Outcome{o}, nil)
	return slices.Collect(maps.Keys(done)), err
}

// Committed looks whether an outcome took effect whose COMMIT got no reply.
func (p *Plugin) Committed(ctx context.Context, o dialect.Outcome) (bool, error) {
	return p.store.Committed(ctx, o)
}

// AlreadyApplied looks which outcomes of a group took effect whose statement got no reply.
func (p *Plugin) AlreadyApplied(ctx context.Context, outcomes ...dialect.Outcome) (map[string]bool, error) {
	return p.store.AlreadyApplied(ctx, outcomes)
}

// Prepared are the texts of the statements that are kept prepared.
func (p *Plugin) Prepared() []string {
	return p.store.Prepared()
}

// Rebind gives the plugin another pool, as if the one it was installed on had come back.
func (p *Plugin) Rebind(pool *sql.DB) { p.store.Pool = pool }
