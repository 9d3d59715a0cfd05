package dispatch

import (
	"context"
	"database/sql"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/gorm-outbox/outbox/internal/dialect"
)

// Tx is the transaction that a transactional handler gets. The handler cannot end it, and cannot
// use it after having returned. GORM's nested transactions work: they are savepoints.
type Tx struct {
	Tx      *sql.Tx // not embedded: its other methods would bypass the checks
	dialect dialect.Dialect
	use     sync.RWMutex // read-held by each statement, so that none is under way when the transaction ends
	closed  atomic.Bool
	ended   atomic.Bool // the handler tried to commit or roll back
	undone  atomic.Bool // the transaction is gone, and statements would be committed one by one

	mu    sync.Mutex
	stmts []*sql.Stmt // prepared statements, whose execution bypasses the checks
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

// close waits for a statement that a goroutine of the handler's still executes, and refuses later
// ones. With two statements at a time some drivers mistake the reply to one for that to the other.
func (g *Tx) close() {
	g.use.Lock()
	defer g.use.Unlock()
	g.closed.Store(true)
	for _, s := range g.stmts {
		_ = s.Close() // waits for an execution under way; an error means that the connection is broken anyway
	}
	g.stmts = nil
}

// prepared keeps a statement, to close it with the handle. g.use must be read-held.
func (g *Tx) prepared(s *sql.Stmt) *sql.Stmt {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stmts = append(g.stmts, s)
	return s
}

// check lets a statement through, or says why not. g.use must be read-held.
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

// StmtContext binds a statement to the transaction that GORM has prepared before, also in an
// earlier transaction.
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

// refused is a context that has ended with an error of the library. A *sql.Row or a *sql.Stmt
// cannot be made with an error, but takes it from its context, and then executes nothing.
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
