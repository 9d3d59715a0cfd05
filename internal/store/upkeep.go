package store

import (
	"context"
	"time"

	"github.com/gorm-outbox/outbox/internal/dialect"
	"github.com/gorm-outbox/outbox/internal/guard"
)

// Park takes due tasks that no live process can run out of the claim's index, and returns their
// functions.
func (s *Store) Park(ctx context.Context, partitions []dialect.Partition) (funcs []string, err error) {
	defer guard.Driver(&err)
	return s.Dialect.Park(ctx, s.Pool, partitions, MaxRows)
}

// Unpark brings back parked tasks of some functions and queues, at most MaxRows.
func (s *Store) Unpark(ctx context.Context, funcs, queues []string) (n int64, err error) {
	defer guard.Driver(&err)
	return s.Dialect.Unpark(ctx, s.Pool, funcs, queues, MaxRows)
}

// Prune deletes up to limit rows of history that are older than an age: errors, or all others.
func (s *Store) Prune(ctx context.Context, errors bool, age time.Duration, limit int) (n int64, err error) {
	defer guard.Driver(&err)
	return s.Dialect.Prune(ctx, s.Pool, errors, age, limit)
}
