package outbox

import (
	"context"
	"database/sql"
	"sync/atomic"

	"gorm.io/gorm"
)

// guardedTx is the transaction that a transactional handler gets. It cannot end it, and it cannot use it once it has
// returned. GORM's nested transactions work: they are savepoints.
type guardedTx struct {
	*sql.Tx
	closed atomic.Bool
	ended  atomic.Bool // the handler tried to commit or roll back
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

func (g *guardedTx) PrepareContext(ctx context.Context, query string) (*sql.Stmt, error) {
	if g.closed.Load() {
		return nil, ErrTxClosed
	}
	return g.Tx.PrepareContext(ctx, query)
}

func (g *guardedTx) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	if g.closed.Load() {
		return nil, ErrTxClosed
	}
	return g.Tx.ExecContext(ctx, query, args...)
}

func (g *guardedTx) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	if g.closed.Load() {
		return nil, ErrTxClosed
	}
	return g.Tx.QueryContext(ctx, query, args...)
}

func (g *guardedTx) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	if g.closed.Load() {
		// A *sql.Row cannot be made with an error of our own; a context that has ended gives one that touches nothing.
		ended, cancel := context.WithCancelCause(ctx)
		cancel(ErrTxClosed)
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
