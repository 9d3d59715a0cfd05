package dialect

import (
	"context"
	"database/sql"
	"maps"
	"slices"
	"sync"
)

// StatementCache holds prepared statements, for drivers that would prepare a statement for each
// execution. The statements live as long as the pool. A statement that is not prepared yet is
// executed unprepared, and prepared before the next transaction: inside a transaction, a pool of a
// single connection has no connection left.
type StatementCache struct {
	pool *sql.DB

	mu     sync.Mutex
	stmts  map[string]*sql.Stmt
	wanted map[string]bool
}

// NewStatementCache returns a cache for a pool. It is safe for concurrent use.
func NewStatementCache(pool *sql.DB) *StatementCache {
	return &StatementCache{pool: pool, stmts: map[string]*sql.Stmt{}, wanted: map[string]bool{}}
}

// get returns a prepared statement, or nil.
func (c *StatementCache) get(query string) *sql.Stmt {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.stmts[query]
	if s == nil {
		c.wanted[query] = true
	}
	return s
}

// Prepare prepares the statements that get has not found. It ignores errors: the execution of the
// statement will report them.
func (c *StatementCache) Prepare(ctx context.Context) {
	c.mu.Lock()
	wanted := c.wanted
	if len(wanted) == 0 {
		c.mu.Unlock()
		return
	}
	c.wanted = map[string]bool{}
	c.mu.Unlock()
	for query := range wanted {
		s, err := c.pool.PrepareContext(ctx, query)
		if err != nil {
			return
		}
		c.mu.Lock()
		c.stmts[query] = s
		c.mu.Unlock()
	}
}

// Prepared returns the texts of the prepared statements.
func (c *StatementCache) Prepared() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Collect(maps.Keys(c.stmts))
}

// On returns a Conn that executes statements through the cache: in tx, or on the pool if tx is nil.
func (c *StatementCache) On(tx *sql.Tx) Conn { return cached{c, tx} }

type cached struct {
	*StatementCache
	tx *sql.Tx
}

// prepared returns the statement, or nil.
func (c cached) prepared(ctx context.Context, query string) *sql.Stmt {
	s := c.get(query)
	if s != nil && c.tx != nil {
		return c.tx.StmtContext(ctx, s)
	}
	return s
}

func (c cached) unprepared() Conn {
	if c.tx != nil {
		return c.tx
	}
	return c.pool
}

func (c cached) ExecContext(ctx context.Context, query string, params ...any) (sql.Result, error) {
	if s := c.prepared(ctx, query); s != nil {
		return s.ExecContext(ctx, params...)
	}
	return c.unprepared().ExecContext(ctx, query, params...)
}

func (c cached) QueryContext(ctx context.Context, query string, params ...any) (*sql.Rows, error) {
	if s := c.prepared(ctx, query); s != nil {
		return s.QueryContext(ctx, params...)
	}
	return c.unprepared().QueryContext(ctx, query, params...)
}
