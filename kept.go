package outbox

import (
	"context"
	"database/sql"
	"sync"

	"github.com/gorm-outbox/outbox/internal/dialect"
)

// kept holds the dispatcher's statements prepared, where the driver would prepare each anew. They live as long as the pool.
// What is not prepared yet is executed without, and prepared before the next transaction: within one, a pool of a single
// connection has none left.
type kept struct {
	pool *sql.DB

	mu     sync.Mutex
	stmts  map[string]*sql.Stmt
	wanted map[string]bool
}

func newKept(pool *sql.DB) *kept {
	return &kept{pool: pool, stmts: map[string]*sql.Stmt{}, wanted: map[string]bool{}}
}

// get returns a prepared statement, or nil.
func (k *kept) get(query string) *sql.Stmt {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.stmts[query]
	if s == nil {
		k.wanted[query] = true
	}
	return s
}

// prepare makes what was asked for in vain. Whatever keeps it from that, the statement itself will meet.
func (k *kept) prepare(ctx context.Context) {
	k.mu.Lock()
	wanted := k.wanted
	if len(wanted) == 0 {
		k.mu.Unlock()
		return
	}
	k.wanted = map[string]bool{}
	k.mu.Unlock()
	for query := range wanted {
		s, err := k.pool.PrepareContext(ctx, query)
		if err != nil {
			return
		}
		k.mu.Lock()
		k.stmts[query] = s
		k.mu.Unlock()
	}
}

// keptConn executes on the pool, or in a transaction if there is one.
type keptConn struct {
	*kept
	tx *sql.Tx
}

func (c keptConn) ExecContext(ctx context.Context, query string, params ...any) (sql.Result, error) {
	s := c.get(query)
	switch {
	case s == nil && c.tx == nil:
		return c.pool.ExecContext(ctx, query, params...)
	case s == nil:
		return c.tx.ExecContext(ctx, query, params...)
	case c.tx != nil:
		s = c.tx.StmtContext(ctx, s)
	}
	return s.ExecContext(ctx, params...)
}

func (c keptConn) QueryContext(ctx context.Context, query string, params ...any) (*sql.Rows, error) {
	s := c.get(query)
	switch {
	case s == nil && c.tx == nil:
		return c.pool.QueryContext(ctx, query, params...)
	case s == nil:
		return c.tx.QueryContext(ctx, query, params...)
	case c.tx != nil:
		s = c.tx.StmtContext(ctx, s)
	}
	return s.QueryContext(ctx, params...)
}

// work is what the statements are executed on that the dispatcher needs all the time: tx or, where it is nil, the pool.
func (s *store) work(tx *sql.Tx) dialect.Conn {
	switch {
	case s.kept != nil:
		return keptConn{s.kept, tx}
	case tx != nil:
		return tx
	}
	return s.pool
}
