package scenarios_test

import (
	"context"
	"database/sql/driver"
	"io"
	"sync/atomic"
)

// step is what a tap sees of one statement: before it is sent, and after its reply has come.
type step struct {
	after bool
	text  string // the statement; BEGIN, ROLLBACK, or COMMIT with the transaction's last statement behind it
}

// tap is between database/sql and a driver. What on returns as an error takes the place of the
// statement (before) or of its reply (after, when it has taken effect).
type tap struct {
	on atomic.Pointer[func(context.Context, step) error]
}

func (t *tap) set(on func(context.Context, step) error) { t.on.Store(&on) }

func (t *tap) hit(ctx context.Context, after bool, text string) error {
	if on := t.on.Load(); on != nil {
		return (*on)(ctx, step{after, plain(text)})
	}
	return nil
}

type tapConnector struct {
	tap  *tap
	real driver.Driver
	dsn  string
}

func (c *tapConnector) Driver() driver.Driver { return c.real }

func (c *tapConnector) Connect(context.Context) (driver.Conn, error) {
	conn, err := c.real.Open(c.dsn)
	if err != nil {
		return nil, err
	}
	return &tapConn{Conn: conn, tap: c.tap}, nil
}

type tapConn struct {
	driver.Conn
	tap  *tap
	last string
}

func (c *tapConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	c.last = query
	if err := c.tap.hit(ctx, false, query); err != nil {
		return nil, err
	}
	r, err := c.Conn.(driver.ExecerContext).ExecContext(ctx, query, args)
	if err == nil {
		err = c.tap.hit(ctx, true, query)
	}
	return r, err
}

// Prepare leads to the same: what is kept prepared is tapped, too.
func (c *tapConn) Prepare(query string) (driver.Stmt, error) { return tapStmt{c, query}, nil }

func (c *tapConn) PrepareContext(_ context.Context, query string) (driver.Stmt, error) {
	return c.Prepare(query)
}

type tapStmt struct {
	c     *tapConn
	query string
}

func (s tapStmt) Close() error                               { return nil }
func (s tapStmt) NumInput() int                              { return -1 }
func (s tapStmt) Exec([]driver.Value) (driver.Result, error) { return nil, driver.ErrSkip }
func (s tapStmt) Query([]driver.Value) (driver.Rows, error)  { return nil, driver.ErrSkip }

func (s tapStmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	return s.c.ExecContext(ctx, s.query, args)
}

func (s tapStmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	return s.c.QueryContext(ctx, s.query, args)
}

// QueryContext reads all rows before it says that the reply has come: some drivers do the work only
// then.
func (c *tapConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	c.last = query
	if err := c.tap.hit(ctx, false, query); err != nil {
		return nil, err
	}
	rows, err := c.Conn.(driver.QueryerContext).QueryContext(ctx, query, args)
	if err != nil {
		return nil, err
	}
	all := &bufferedRows{columns: rows.Columns()}
	for {
		row := make([]driver.Value, len(all.columns))
		if err = rows.Next(row); err != nil {
			break
		}
		for i, v := range row {
			if b, ok := v.([]byte); ok {
				row[i] = append([]byte{}, b...)
			}
		}
		all.rows = append(all.rows, row)
	}
	closed := rows.Close()
	switch {
	case err != io.EOF:
		return nil, err
	case closed != nil:
		return nil, closed
	}
	if err := c.tap.hit(ctx, true, query); err != nil {
		return nil, err
	}
	return all, nil
}

func (c *tapConn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	if err := c.tap.hit(ctx, false, "BEGIN"); err != nil {
		return nil, err
	}
	tx, err := c.Conn.(driver.ConnBeginTx).BeginTx(ctx, opts)
	if err != nil {
		return nil, err
	}
	return &tapTx{tx, c}, nil
}

func (c *tapConn) CheckNamedValue(v *driver.NamedValue) error {
	if checker, ok := c.Conn.(driver.NamedValueChecker); ok {
		return checker.CheckNamedValue(v)
	}
	return driver.ErrSkip
}

func (c *tapConn) ResetSession(ctx context.Context) error {
	if r, ok := c.Conn.(driver.SessionResetter); ok {
		return r.ResetSession(ctx)
	}
	return nil
}

func (c *tapConn) IsValid() bool {
	v, ok := c.Conn.(driver.Validator)
	return !ok || v.IsValid()
}

type tapTx struct {
	driver.Tx
	c *tapConn
}

func (t *tapTx) Commit() error {
	query := "COMMIT; " + t.c.last
	if err := t.c.tap.hit(context.Background(), false, query); err != nil {
		return err
	}
	if err := t.Tx.Commit(); err != nil {
		return err
	}
	return t.c.tap.hit(context.Background(), true, query)
}

func (t *tapTx) Rollback() error {
	_ = t.c.tap.hit(context.Background(), false, "ROLLBACK")
	return t.Tx.Rollback()
}

type bufferedRows struct {
	columns []string
	rows    [][]driver.Value
}

func (r *bufferedRows) Columns() []string { return r.columns }
func (r *bufferedRows) Close() error      { return nil }

func (r *bufferedRows) Next(dest []driver.Value) error {
	if len(r.rows) == 0 {
		return io.EOF
	}
	copy(dest, r.rows[0])
	r.rows = r.rows[1:]
	return nil
}
