// Package store has every statement on the library's own tables: migrate, create, change, claim,
// complete, process. It knows rows and not what they are for: no handlers, no models of the API, no
// goroutines. What databases write differently is in package dialect.
//
// Each statement that changes a state names in its WHERE the state that it leaves, or the fence;
// its caller looks at what it changed. Statements of the dispatcher run on the store's pool, those
// for a caller on the connection that they are given.
package store

import (
	"context"
	"database/sql"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gorm-outbox/outbox/internal/dialect"
	"github.com/gorm-outbox/outbox/internal/guard"
)

// Store is one plugin's tables in one database.
type Store struct {
	Pool    *sql.DB // the primary
	Dialect dialect.Dialect

	names      dialect.Names
	clock      func() time.Time // of tests; nil is the database's
	placed     bool             // the names in the statements say in which schema the tables are
	statements *dialect.StatementCache
	writer     chan struct{} // of a serial database: held by the claim, the completion or the run that writes
	compared   *atomic.Bool  // the tables are what this program needs
}

// New returns the store of a plugin's tables. database is a gorm.Dialector's name. A clock, for
// tests, replaces the database's.
func New(pool *sql.DB, database string, names dialect.Names, clock func() time.Time) (*Store, error) {
	d, err := dialect.New(database, names, clock)
	if err != nil {
		return nil, err
	}
	s := With(pool, d)
	s.names, s.clock = names, clock
	s.placed = strings.Contains(names.Tasks, ".")
	if d.Keep() && clock == nil { // a test clock is part of the texts
		s.statements = dialect.NewStatementCache(pool)
	}
	return s, nil
}

// With returns a store whose statements are of a dialect that tests have made.
func With(pool *sql.DB, d dialect.Dialect) *Store {
	return &Store{Pool: pool, Dialect: d, placed: true, writer: make(chan struct{}, 1), compared: new(atomic.Bool)}
}

// Placed reports whether the statements say in which schema the tables are.
func (s *Store) Placed() bool { return s.placed }

// Place is the store with the schema in its names in which the pool's connections find the tables.
// A caller's connection is not asked: its session may have set another.
func (s *Store) Place(ctx context.Context) (*Store, error) {
	ctx, cancel := context.WithTimeout(ctx, PlaceLimit)
	defer cancel()
	home, err := s.Dialect.Home(ctx, s.Pool)
	if err != nil || home == "" {
		return s, err
	}
	placed := *s
	placed.names.Schema, placed.placed = home, true
	placed.Dialect, err = dialect.New(s.Dialect.Name(), placed.names, s.clock)
	return &placed, err
}

// PlaceLimit bounds the question in which schema the tables are.
const PlaceLimit = 2 * time.Second

// Prepared are the texts of the statements that are kept prepared.
func (s *Store) Prepared() []string {
	if s.statements == nil {
		return nil
	}
	return s.statements.Prepared()
}

// inTx runs f in a transaction of the pool's own.
func (s *Store) inTx(ctx context.Context, f func(*sql.Tx) error) (err error) {
	defer guard.Driver(&err)
	if s.statements != nil {
		s.statements.Prepare(ctx)
	}
	tx, err := s.Pool.BeginTx(ctx, &sql.TxOptions{Isolation: s.Dialect.Isolation()})
	if err != nil {
		return err
	}
	defer dialect.RollBack(ctx, s.Dialect, tx)
	if err := f(tx); err != nil {
		return err
	}
	return s.Dialect.End(ctx, tx.Commit)
}

func (s *Store) query(ctx context.Context, c dialect.Conn, query string, params []any, each func(*sql.Rows) error) (err error) {
	defer guard.Driver(&err)
	rows, err := c.QueryContext(ctx, s.Dialect.Rebind(query), params...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := each(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

func (s *Store) exec(ctx context.Context, c dialect.Conn, query string, params ...any) (n int64, err error) {
	defer guard.Driver(&err)
	r, err := c.ExecContext(ctx, s.Dialect.Rebind(query), params...)
	if err != nil {
		return 0, err
	}
	return r.RowsAffected()
}

// one reads one text.
func (s *Store) one(ctx context.Context, c dialect.Conn, query string, params ...any) (text string, found bool, err error) {
	err = s.query(ctx, c, query, params, func(r *sql.Rows) error {
		found = true
		return r.Scan(&text)
	})
	return text, found, s.Explain(err)
}

// inside is the context of a statement of an open transaction. mattn/go-sqlite3, whose statements
// are kept prepared, hands every row of a query that can be cancelled through a goroutine of its
// own, which costs as much as the row. Nothing is waited for there any more: the transaction has
// its lock.
func (s *Store) inside(ctx context.Context) context.Context {
	if s.statements != nil {
		return context.WithoutCancel(ctx)
	}
	return ctx
}

// work is what the dispatcher's frequent statements are executed on: tx or, where it is nil, the
// pool.
func (s *Store) work(tx *sql.Tx) dialect.Conn {
	switch {
	case s.statements != nil:
		return s.statements.On(tx)
	case tx != nil:
		return tx
	}
	return s.Pool
}

// LockWriter waits until no other statement or transactional run of this dispatcher writes, where
// one transaction at a time can. It returns what unlocks.
func (s *Store) LockWriter(ctx context.Context) (unlock func(), err error) {
	if !s.Dialect.Serial() {
		return func() {}, nil
	}
	select {
	case s.writer <- struct{}{}:
		return func() { <-s.writer }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Now is the database's clock.
func (s *Store) Now(ctx context.Context) (_ time.Time, err error) {
	defer guard.Driver(&err)
	text, err := s.Dialect.Clock(ctx, s.Pool)
	if err != nil {
		return time.Time{}, err
	}
	var t time.Time
	err = instant{&t}.Scan(text)
	return t, err
}
