package outbox

import (
	"context"
	"database/sql"
	"errors"
	"sync/atomic"

	"gorm.io/gorm"
)

// guardedTx is the transaction that a transactional handler gets. It cannot end it, and it cannot use it once it has
// returned. GORM's nested transactions work: they are savepoints.
type guardedTx struct {
	*sql.Tx
	s      *store
	closed atomic.Bool
	ended  atomic.Bool // the handler tried to commit or roll back
	undone atomic.Bool // the transaction is gone, and statements would be committed one by one
}

var _ gorm.Tx = (*guardedTx)(nil)

func (g *guardedTx) Commit() error {
	g.ended.Store(true)
	return ErrTxGuarded
}

func (g *guardedTx) Rollback() error {
	g.ended.Store(true)
	return ErrTxGuarded
}

var errTxUndone = errors.New("the handler's transaction has ended, by a statement of its own or after an error of the database")

// check lets a statement through, or says why not.
func (g *guardedTx) check(ctx context.Context) error {
	switch {
	case g.closed.Load():
		return ErrTxClosed
	case g.undone.Load() || !g.s.d.StillIn(ctx, g.Tx):
		g.undone.Store(true)
		return errTxUndone
	}
	return nil
}

func (g *guardedTx) PrepareContext(ctx context.Context, query string) (*sql.Stmt, error) {
	if err := g.check(ctx); err != nil {
		return nil, err
	}
	return g.Tx.PrepareContext(ctx, query)
}

func (g *guardedTx) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	if err := g.check(ctx); err != nil {
		return nil, err
	}
	return g.Tx.ExecContext(ctx, query, args...)
}

func (g *guardedTx) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	if err := g.check(ctx); err != nil {
		return nil, err
	}
	return g.Tx.QueryContext(ctx, query, args...)
}

func (g *guardedTx) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	if err := g.check(ctx); err != nil {
		// A *sql.Row cannot be made with an error of our own; a context that has ended gives one that touches nothing.
		ended, cancel := context.WithCancelCause(ctx)
		cancel(err)
		return g.Tx.QueryRowContext(ended, query, args...)
	}
	return g.Tx.QueryRowContext(ctx, query, args...)
}

// handlerDB is the *gorm.DB that a handler gets for a transaction.
func (s *store) handlerDB(ctx context.Context, g *guardedTx) *gorm.DB {
	tx := s.gorm.Session(&gorm.Session{NewDB: true, Context: ctx, SkipDefaultTransaction: true})
	tx.Statement.ConnPool = g
	return tx
}
