package dispatch

import (
	"context"
	"database/sql"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/gorm-outbox/outbox/internal/dialect"
)

// Tx is the transaction that a transactional handler gets. It cannot end it, and it cannot use it
// once it has returned. GORM's nested transactions work: they are savepoints.
type Tx struct {
	Tx      *sql.Tx // not embedded, for its other methods would pass the guard by
	dialect dialect.Dialect
	use     sync.RWMutex // held by each statement, so that none is under way when the transaction is finished
	closed  atomic.Bool
	ended   atomic.Bool // the handler tried to commit or roll back
	undone  atomic.Bool // the transaction is gone, and statements would be committed one by one

	mu    sync.Mutex
	stmts []*sql.Stmt // what was prepared, which goes past the guard when it is executed
}

func (g *Tx) Commit() error {
	g.ended.Store(true)
	return ErrTxGuarded
}

func (g *Tx) Rollback() error {
	g.ended.Store(true)
	return ErrTxGuarded
}

var errTxUndone = errors.New("the handler's transaction has ended, by a statement of its own or after an error of the database")

// close waits for the statement that is under way, of a goroutine that the handler has left behind,
// and refuses those that come later. Some drivers would take the reply to one statement for that to
// another.
func (g *Tx) close() {
	g.use.Lock()
	defer g.use.Unlock()
	g.closed.Store(true)
	for _, s := range g.stmts {
		_ = s.Close() // after the execution that is under way; an error is of a connection that has other troubles
	}
	g.stmts = nil
}

// prepared notes a statement, to be closed with the handle. The caller holds use.
func (g *Tx) prepared(s *sql.Stmt) *sql.Stmt {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stmts = append(g.stmts, s)
	return s
}

// check lets a statement through, or says why not. The caller holds use.
func (g *Tx) check(ctx context.Context) error {
	switch {
	case g.closed.Load():
		return ErrTxClosed
	case g.undone.Load() || !g.dialect.StillIn(ctx, g.Tx):
		g.undone.Store(true)
		return errTxUndone
	}
	return nil
}

func (g *Tx) PrepareContext(ctx context.Context, query string) (*sql.Stmt, error) {
	g.use.RLock()
	defer g.use.RUnlock()
	if err := g.check(ctx); err != nil {
		return nil, err
	}
	s, err := g.Tx.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	return g.prepared(s), nil
}

// StmtContext is what GORM executes prepared statements through, of which it keeps those of earlier
// transactions, too.
func (g *Tx) StmtContext(ctx context.Context, stmt *sql.Stmt) *sql.Stmt {
	g.use.RLock()
	defer g.use.RUnlock()
	if err := g.check(ctx); err != nil {
		return g.Tx.StmtContext(refused{ctx, err}, stmt)
	}
	return g.prepared(g.Tx.StmtContext(ctx, stmt))
}

func (g *Tx) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	g.use.RLock()
	defer g.use.RUnlock()
	if err := g.check(ctx); err != nil {
		return nil, err
	}
	return g.Tx.ExecContext(ctx, query, args...)
}

func (g *Tx) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	g.use.RLock()
	defer g.use.RUnlock()
	if err := g.check(ctx); err != nil {
		return nil, err
	}
	return g.Tx.QueryContext(ctx, query, args...)
}

func (g *Tx) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	g.use.RLock()
	defer g.use.RUnlock()
	if err := g.check(ctx); err != nil {
		return g.Tx.QueryRowContext(refused{ctx, err}, query, args...)
	}
	return g.Tx.QueryRowContext(ctx, query, args...)
}

// refused is a context that has ended with an error of our own. A *sql.Row and a *sql.Stmt, which
// cannot be made with one, have it from the context, and touch nothing.
type refused struct {
	context.Context
	err error
}

func (r refused) Err() error { return r.err }

func (r refused) Done() <-chan struct{} {
	over := make(chan struct{})
	close(over)
	return over
}
