package outbox

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox/internal/dialect"
	"github.com/gorm-outbox/outbox/internal/dispatch"
	"github.com/gorm-outbox/outbox/internal/guard"
	"github.com/gorm-outbox/outbox/internal/store"
)

// handle is a caller's *gorm.DB with the plugin that it carries.
type handle struct {
	p     *Plugin
	store *store.Store
	tx    *gorm.DB
	conn  gorm.ConnPool
	inTx  bool // conn is a transaction
	ctx   context.Context
}

// open takes from a caller's handle only what cannot have been made dirty: the connection and the
// context.
func open(tx *gorm.DB) (handle, error) {
	if tx == nil || tx.Config == nil || tx.Statement == nil {
		return handle{}, fmt.Errorf("%w: it is nil", ErrNotInstalled)
	}
	p, ok := tx.Plugins[pluginName].(*Plugin)
	if !ok {
		return handle{}, ErrNotInstalled
	}
	s, err := p.placedForCaller(tx.Statement.Context)
	if err != nil {
		return handle{}, err
	}
	if tx.Error != nil {
		return handle{}, fmt.Errorf("the *gorm.DB carries an error already: %w", tx.Error)
	}
	if tx.DryRun {
		return handle{}, ErrDryRun
	}
	conn := primary(tx, s.Pool)
	return handle{p: p, store: s, tx: tx, conn: conn, inTx: isTx(conn), ctx: tx.Statement.Context}, nil
}

// openToCreate is open for what Options.RequireTx applies to.
func openToCreate(tx *gorm.DB) (handle, error) {
	h, err := open(tx)
	if err == nil && h.p.opts.RequireTx && !h.inTx {
		return handle{}, ErrNoTransaction
	}
	return h, err
}

// primary is the handle's connection, but for a pool that is not its DB's: dbresolver leaves a
// replica's in a handle that a query has returned. A transaction or a single connection stays what
// it is.
func primary(tx *gorm.DB, pool *sql.DB) gorm.ConnPool {
	conn := tx.Statement.ConnPool
	if isTx(conn) || poolOf(conn) == nil || poolOf(conn) == pool || poolOf(tx.ConnPool) != pool {
		return conn
	}
	return tx.ConnPool
}

// traced executes on a caller's connection and tells the caller's GORM logger, so that Debug()
// shows the statement. It goes past GORM's callbacks: those of other plugins would send it to a
// replica or rewrite it.
type traced struct{ h handle }

func (h handle) traced() dialect.Conn { return traced{h} }

func (t traced) ExecContext(ctx context.Context, query string, params ...any) (sql.Result, error) {
	begin := time.Now()
	r, err := t.h.conn.ExecContext(ctx, query, params...)
	rows := int64(-1)
	if err == nil {
		rows, _ = r.RowsAffected()
	}
	t.log(ctx, begin, query, params, rows, err)
	return r, err
}

func (t traced) QueryContext(ctx context.Context, query string, params ...any) (*sql.Rows, error) {
	begin := time.Now()
	r, err := t.h.conn.QueryContext(ctx, query, params...)
	t.log(ctx, begin, query, params, -1, err)
	return r, err
}

func (t traced) log(ctx context.Context, begin time.Time, query string, params []any, rows int64, err error) {
	logger := t.h.tx.Logger
	if logger == nil {
		return
	}
	// The statement has been executed, whatever becomes of its line in the log.
	defer func() {
		if v := recover(); v != nil {
			t.h.p.log.Error("outbox: the *gorm.DB's logger panicked", "panic", guard.PanicText(v))
		}
	}()
	logger.Trace(ctx, begin, func() (string, int64) {
		if filter, ok := logger.(gorm.ParamsFilter); ok {
			query, params = filter.ParamsFilter(ctx, query, params...)
		}
		return t.h.tx.Dialector.Explain(query, params...), rows
	}, err)
}

// withRetry runs f again after a deadlock or a serialization failure. It does not inside the
// caller's transaction: the database has rolled that back, so the caller must retry it.
func (h handle) withRetry(f func() error) error {
	_, pinned := base(h.conn).(*sql.Conn)
	for try := 1; ; try++ {
		err := f()
		if h.inTx || pinned || try == dispatch.MaxTries || dialect.Classify(err) != dialect.Retry || dispatch.PauseBeforeTry(h.ctx, try) != nil {
			return err
		}
	}
}

// inTxOrSavepoint runs f so that all of it happens or nothing: in a savepoint of the caller's
// transaction, which stays usable when f fails, or else in a transaction of its own.
func (h handle) inTxOrSavepoint(f func(handle) error) error {
	if h.inTx {
		if prepared, ok := base(h.conn).(*gorm.PreparedStmtTX); ok {
			h.conn = prepared.Tx // savepoints cannot be prepared everywhere
		}
		return h.savepoint(f)
	}
	if _, pinned := base(h.conn).(*sql.Conn); pinned {
		// The caller may have begun a transaction on it with a statement. A second BEGIN would end
		// that one with its own commit.
		if err := h.savepoint(f); !errors.Is(err, errNoTx) {
			return err
		}
	}
	tx, err := beginTx(h.ctx, h.conn, &sql.TxOptions{Isolation: h.store.Dialect.Isolation()})
	if err != nil {
		return err
	}
	committer := tx.(gorm.TxCommitter)
	defer func() { _ = h.store.Dialect.End(h.ctx, committer.Rollback) }()
	h.conn, h.inTx = tx, true
	if err := h.begin(); err != nil {
		return err
	}
	if err := f(h); err != nil {
		return err
	}
	return h.store.Dialect.End(h.ctx, committer.Commit)
}

// begin readies the caller's transaction for reads that are followed by writes.
func (h handle) begin() error { return h.store.Explain(h.store.Dialect.Begin(h.ctx, h.traced())) }

var errNoTx = errors.New("the connection is not in a transaction")

const savepointName = "outbox"

func (h handle) savepoint(f func(handle) error) (err error) {
	c, pinned := base(h.conn).(*sql.Conn)
	if pinned && !h.store.Dialect.StillIn(h.ctx, c) {
		return errNoTx
	}
	if _, err := h.conn.ExecContext(h.ctx, "SAVEPOINT "+savepointName); err != nil {
		if pinned {
			return errors.Join(errNoTx, err)
		}
		return err
	}
	finished := false
	defer func() {
		if finished && err == nil {
			return
		}
		// Also after the context's end, for the transaction is to stay usable; but the database may
		// not answer.
		ctx, cancel := dialect.Outlive(h.ctx)
		defer cancel()
		if _, undo := h.conn.ExecContext(ctx, "ROLLBACK TO SAVEPOINT "+savepointName); undo != nil {
			err = errors.Join(err, fmt.Errorf("roll back to savepoint: %w", undo))
			return
		}
		if _, undo := h.conn.ExecContext(ctx, "RELEASE SAVEPOINT "+savepointName); undo != nil {
			err = errors.Join(err, fmt.Errorf("release savepoint: %w", undo))
		}
	}()
	if err = h.begin(); err == nil {
		err = f(h)
	}
	finished = true
	if err != nil {
		return err
	}
	_, err = h.conn.ExecContext(h.ctx, "RELEASE SAVEPOINT "+savepointName)
	return err
}
