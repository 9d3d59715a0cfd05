package commitwatch

import (
	"context"
	"database/sql"
	"errors"
	"sync/atomic"
	"time"
)

// asker is a transaction that can be asked: a *sql.Tx, or a wrapper that hands the call on.
type asker interface {
	StmtContext(context.Context, *sql.Stmt) *sql.Stmt
}

// Over returns a way to ask, without I/O, whether a transaction has been committed or rolled back.
// It returns nil for a transaction of a kind that does not tell.
func Over(tx any) func() bool {
	a, ok := tx.(asker)
	if !ok {
		return nil
	}
	// StmtContext first checks whether the transaction is over and then looks at the statement;
	// Close reports either. The statement belongs to no database, so nothing can be executed.
	return func() bool {
		return errors.Is(a.StmtContext(context.Background(), new(sql.Stmt)).Close(), sql.ErrTxDone)
	}
}

// question asks whether a transaction is over in a goroutine of its own: the answer waits while a
// statement of the transaction is under way during its rollback.
type question struct {
	over          func() bool // nil when the transaction does not tell
	asking, found atomic.Bool
}

// patience is how long a poll waits for an answer, which is at hand but for that one case.
const patience = time.Millisecond

func (q *question) isOver() bool {
	if !q.found.Load() && q.asking.CompareAndSwap(false, true) {
		answered := make(chan struct{})
		go func() {
			defer close(answered)
			over := true // of a transaction that panics, too: then the database is asked
			defer func() {
				_ = recover()
				q.found.Store(over)
				q.asking.Store(false)
			}()
			over = q.over()
		}()
		timer := time.NewTimer(patience)
		defer timer.Stop()
		select {
		case <-answered:
		case <-timer.C:
		}
	}
	return q.found.Load()
}
