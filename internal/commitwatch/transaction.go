package commitwatch

import (
	"context"
	"database/sql"
	"errors"
	"sync/atomic"
	"time"
)

// asker is a transaction that can be asked whether it is over: a *sql.Tx, or a wrapper that passes
// the call on.
type asker interface {
	StmtContext(context.Context, *sql.Stmt) *sql.Stmt
}

// Over returns a function that reports, without I/O, whether a transaction has been committed or
// rolled back. It returns nil for a kind of transaction that cannot be asked.
func Over(tx any) func() bool {
	a, ok := tx.(asker)
	if !ok {
		return nil
	}
	// StmtContext first checks whether the transaction is over, and then looks at the statement.
	// Close returns either error. The statement belongs to no database, so nothing can be executed.
	return func() bool {
		return errors.Is(a.StmtContext(context.Background(), new(sql.Stmt)).Close(), sql.ErrTxDone)
	}
}

// question asks whether a transaction is over, in a goroutine of its own: while a statement of the
// transaction is still running during its rollback, the answer has to wait.
type question struct {
	over          func() bool // nil when the transaction cannot be asked
	asking, found atomic.Bool
}

// patience is how long a poll waits for an answer. The answer comes at once except in that one
// case.
const patience = time.Millisecond

func (q *question) isOver() bool {
	if !q.found.Load() && q.asking.CompareAndSwap(false, true) {
		answered := make(chan struct{})
		go func() {
			defer close(answered)
			over := true // also if the transaction panics: the database is asked then
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
