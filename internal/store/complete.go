package store

import (
	"context"
	"database/sql"
	"slices"
	"strings"
	"time"

	"github.com/gorm-outbox/outbox/internal/dialect"
	"github.com/gorm-outbox/outbox/internal/guard"
)

// A chunk of a batch, or a group of outcomes. On its way a text takes up to four times its size (a
// quote in JSON in JSON in SQL), and MariaDB's packets end at 16 MB.
const (
	MaxRows  = 1000
	MaxBytes = 3 << 20
)

// Let are the tasks of a group that the fence let through: all of them, or those that are listed.
type Let struct {
	All bool
	IDs map[string]bool
}

func let(moved []string, all bool) Let {
	l := Let{All: all, IDs: make(map[string]bool, len(moved))}
	for _, id := range moved {
		l.IDs[id] = true
	}
	return l
}

func (l Let) Has(id string) bool { return l.All || l.IDs[id] }

// Complete ends tasks or puts them back to pending, in one transaction where the database needs
// one. It returns the ids that the fence let through.
func (s *Store) Complete(ctx context.Context, outcomes []dialect.Outcome, requeued []dialect.Requeued) (done map[string]bool, err error) {
	defer guard.Driver(&err)
	if s.Dialect.OneStatement() && (len(outcomes) == 0 || len(requeued) == 0) {
		return s.completeIn(ctx, s.work(nil), outcomes, requeued)
	}
	unlock, err := s.LockWriter(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	err = s.inTx(ctx, func(tx *sql.Tx) (err error) {
		done, err = s.completeIn(ctx, s.work(tx), outcomes, requeued)
		return err
	})
	if err != nil {
		return nil, err
	}
	return done, nil
}

func (s *Store) completeIn(ctx context.Context, c dialect.Conn, outcomes []dialect.Outcome, requeued []dialect.Requeued) (map[string]bool, error) {
	done := make(map[string]bool, len(outcomes)+len(requeued))
	if len(outcomes) > 0 {
		ids, err := s.Dialect.Move(ctx, c, dialect.FromRunning, outcomes)
		if err != nil {
			return nil, err
		}
		for _, id := range ids {
			done[id] = true
		}
	}
	if len(requeued) > 0 {
		ids, err := s.Dialect.Requeue(ctx, c, requeued)
		if err != nil {
			return nil, err
		}
		for _, id := range ids {
			done[id] = true
		}
	}
	return done, nil
}

// CompleteUnlocked is Complete, but for the tasks whose rows another transaction has locked: it
// waits for none of them, and returns their ids.
func (s *Store) CompleteUnlocked(ctx context.Context, outcomes []dialect.Outcome, requeued []dialect.Requeued) (done, locked map[string]bool, err error) {
	var ids []any
	for _, o := range outcomes {
		ids = append(ids, o.ID)
	}
	for _, r := range requeued {
		ids = append(ids, r.ID)
	}
	find := " FROM {tasks} WHERE id IN (?" + strings.Repeat(", ?", len(ids)-1) + ")"
	unlock, err := s.LockWriter(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer unlock()
	err = s.inTx(ctx, func(tx *sql.Tx) error {
		free, keys := map[string]bool{}, map[string]string{}
		if err := s.query(ctx, tx, "SELECT id, {key}"+find+s.Dialect.SkipLocked(), ids, func(r *sql.Rows) error {
			var id string
			var key *string
			err := r.Scan(&id, &key)
			if free[id] = key == nil; key != nil {
				keys[id] = *key
			}
			return err
		}); err != nil {
			return err
		}
		// A key may be locked where its row is not: on MySQL by a transaction that could not create
		// another task with it.
		for id, key := range keys {
			if err := s.query(ctx, tx, "SELECT id FROM {tasks} WHERE {key} = ?"+s.Dialect.SkipLocked(), []any{key}, func(r *sql.Rows) error {
				free[id] = true
				return nil
			}); err != nil {
				return err
			}
		}
		// A row that is gone is locked by no transaction.
		locked = map[string]bool{}
		if err := s.query(ctx, tx, "SELECT id"+find, ids, func(r *sql.Rows) error {
			var id string
			err := r.Scan(&id)
			if !free[id] {
				locked[id] = true
			}
			return err
		}); err != nil {
			return err
		}
		done, err = s.completeIn(ctx, tx,
			slices.DeleteFunc(slices.Clone(outcomes), func(o dialect.Outcome) bool { return locked[o.ID] }),
			slices.DeleteFunc(slices.Clone(requeued), func(r dialect.Requeued) bool { return locked[r.ID] }))
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	return done, locked, nil
}

// CanCompleteAndClaim reports that one statement can write these outcomes and claim the next tasks.
func (s *Store) CanCompleteAndClaim(requeued []dialect.Requeued) bool {
	return s.completer(requeued) != nil
}

func (s *Store) completer(requeued []dialect.Requeued) dialect.Completer {
	if d, ok := s.Dialect.(dialect.Completer); ok && len(requeued) == 0 {
		return d
	}
	return nil
}

// CompleteOutcomes ends tasks as Complete does, where CanCompleteAndClaim holds.
func (s *Store) CompleteOutcomes(ctx context.Context, outcomes []dialect.Outcome) (done Let, err error) {
	defer guard.Driver(&err)
	moved, all, err := s.completer(nil).Complete(ctx, s.Pool, outcomes)
	return let(moved, all), err
}

// CompleteAndClaim is Complete and Claim in one transaction.
func (s *Store) CompleteAndClaim(ctx context.Context, outcomes []dialect.Outcome, requeued []dialect.Requeued, plan []dialect.ClaimParams,
	limit int) (done Let, lists [][]Claimed, err error,
) {
	defer guard.Driver(&err)
	if d := s.completer(requeued); d != nil && len(plan) == 1 {
		p := plan[0]
		p.Limit = min(p.Limit, limit)
		var scan claimScan
		var list []Claimed
		moved, all, err := d.CompleteAndClaim(ctx, s.Pool, outcomes, p, func(r dialect.Row) error {
			list = append(list, scan.claimed(r))
			return nil
		})
		if err != nil {
			return Let{}, nil, err
		}
		return let(moved, all), [][]Claimed{list}, nil
	}
	unlock, err := s.LockWriter(ctx)
	if err != nil {
		return Let{}, nil, err
	}
	defer unlock()
	err = s.inTx(ctx, func(tx *sql.Tx) (err error) {
		ctx := s.inside(ctx)
		if done.IDs, err = s.completeIn(ctx, s.work(tx), outcomes, requeued); err == nil {
			lists, err = s.claimIn(ctx, s.work(tx), plan, limit)
		}
		return err
	})
	if err != nil {
		return Let{}, nil, err
	}
	return done, lists, nil
}

// CompleteIn ends a task in the transaction of its handler. It reports whether the fence let it
// through.
func (s *Store) CompleteIn(ctx context.Context, tx *sql.Tx, o dialect.Outcome) (bool, error) {
	moved, err := s.Dialect.Move(ctx, s.work(tx), dialect.FromRunning, []dialect.Outcome{o})
	return len(moved) > 0, err
}

// AlreadyApplied tells which of some outcomes are in history, written by a statement whose reply
// was lost.
func (s *Store) AlreadyApplied(ctx context.Context, outcomes []dialect.Outcome) (map[string]bool, error) {
	there := map[string]bool{}
	for _, o := range outcomes {
		past, err := s.History(ctx, s.Pool, o.ID, false)
		if err != nil {
			return nil, err
		}
		if past.is(o) {
			there[o.ID] = true
		}
	}
	return there, nil
}

// Committed tells whether the end of a task, whose COMMIT got no reply, took effect. Locking the
// task's row waits for the transaction in question.
func (s *Store) Committed(ctx context.Context, o dialect.Outcome) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	there := false
	err := s.inTx(ctx, func(tx *sql.Tx) error {
		return s.query(ctx, tx, "SELECT id FROM {tasks} WHERE id = ?"+s.Dialect.ForUpdate(), []any{o.ID}, func(*sql.Rows) error {
			there = true
			return nil
		})
	})
	if err != nil || there {
		return false, err
	}
	past, err := s.History(ctx, s.Pool, o.ID, false)
	return past.is(o), err
}

// is reports whether a history row, if there is one, was written by this outcome: a rescue of the
// same claim leaves its version and process, too, but another status or reason.
func (h *History) is(o dialect.Outcome) bool {
	return h != nil && h.Version == *o.Version && deref(h.ProcessID) == o.Process && h.Status == o.Status && h.Reason == o.Reason
}
