package store

import (
	"context"
	"database/sql"

	"github.com/gorm-outbox/outbox/internal/dialect"
	"github.com/gorm-outbox/outbox/internal/guard"
)

// Poll returns the state of each partition: whether a task is due, and how long until the next one
// that is not due yet.
func (s *Store) Poll(ctx context.Context) (_ []dialect.PartitionState, err error) {
	defer guard.Driver(&err)
	return s.Dialect.Poll(ctx, s.work(nil))
}

// Claim takes due tasks for a process, at most limit in all by the claims of a plan one after the
// other. The caller has locked the writer. It returns what each claim has found.
func (s *Store) Claim(ctx context.Context, plan []dialect.ClaimParams, limit int) (lists [][]Claimed, err error) {
	defer guard.Driver(&err)
	if s.Dialect.OneStatement() || len(plan) == 1 && len(plan[0].Partitions) == 1 {
		return s.claimIn(ctx, s.work(nil), plan, limit)
	}
	err = s.inTx(ctx, func(tx *sql.Tx) (err error) {
		lists, err = s.claimIn(ctx, s.work(tx), plan, limit)
		return err
	})
	if err != nil {
		return nil, err // what was read of a claim that failed is not ours
	}
	return lists, nil
}

func (s *Store) claimIn(ctx context.Context, c dialect.Conn, plan []dialect.ClaimParams, limit int) ([][]Claimed, error) {
	lists := make([][]Claimed, len(plan))
	for i, p := range plan {
		if p.Limit = min(p.Limit, limit); p.Limit == 0 {
			continue
		}
		var scan claimScan
		err := s.Dialect.Claim(ctx, c, p, func(r dialect.Row) error {
			lists[i] = append(lists[i], scan.claimed(r))
			return nil
		})
		if err != nil {
			return nil, err
		}
		limit -= len(lists[i])
	}
	return lists, nil
}

// Owned are the running tasks of a process.
func (s *Store) Owned(ctx context.Context, process string) ([]Claimed, error) {
	var out []Claimed
	var scan claimScan
	err := s.query(ctx, s.Pool, "SELECT {columns} FROM {tasks} WHERE state = 'running' AND process_id = ?", []any{process},
		func(r *sql.Rows) error {
			out = append(out, scan.claimed(r))
			return nil
		})
	return out, err
}
