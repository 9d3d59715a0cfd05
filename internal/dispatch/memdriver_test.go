package dispatch

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/gorm-outbox/outbox/internal/dialect"
)

// memDialect sends each statement as a word and JSON.
type memDialect struct {
	dialect.Dialect // what the dispatcher does not call
	m               *memory
	claims          func(p dialect.ClaimParams, gone map[string]bool) // told of each claim, and what its transaction has taken from the process
	gone            *sync.Map                                         // by transaction
}

func (d memDialect) Name() string                                  { return "memory" }
func (d memDialect) Serial() bool                                  { return d.m.serial }
func (d memDialect) Keep() bool                                    { return false }
func (d memDialect) OneStatement() bool                            { return !d.m.serial }
func (d memDialect) ForUpdate() string                             { return " FOR UPDATE" }
func (d memDialect) Rebind(q string) string                        { return q }
func (d memDialect) Time(t time.Time) string                       { return t.Format(time.RFC3339Nano) }
func (d memDialect) Check(context.Context, dialect.Conn) error     { return nil }
func (d memDialect) Isolation() sql.IsolationLevel                 { return sql.LevelDefault }
func (d memDialect) Begin(context.Context, dialect.Conn) error     { return nil }
func (d memDialect) StillIn(context.Context, dialect.Conn) bool    { return true }
func (d memDialect) Latest() string                                { return "" }
func (d memDialect) End(_ context.Context, end func() error) error { return end() }
func (d memDialect) Unlock(context.Context, dialect.Conn) error    { return nil }
func (d memDialect) Text(column string) string                     { return column }
func (d memDialect) SkipLocked() string                            { return " SKIP LOCKED" }
func (d memDialect) CheckTables(context.Context, dialect.Conn) (absent, create []string, err error) {
	return nil, nil, nil
}
func (d memDialect) Park(context.Context, dialect.Conn, []dialect.Partition, int) ([]string, error) {
	return nil, nil
}
func (d memDialect) Prune(context.Context, dialect.Conn, bool, time.Duration, int) (int64, error) {
	return 0, nil
}

func (d memDialect) Poll(ctx context.Context, c dialect.Conn) (list []dialect.PartitionState, err error) {
	err = d.ask(ctx, c, "POLL", nil, func(r dialect.Row) error {
		var l dialect.PartitionState
		if err := r.Scan(&l.Queue, &l.Priority, &l.Due, &l.Next); err != nil {
			return err
		}
		i := slices.IndexFunc(list, func(o dialect.PartitionState) bool { return o.Partition == l.Partition })
		if i < 0 {
			i, list = len(list), append(list, dialect.PartitionState{Partition: l.Partition, Next: -1})
		}
		if list[i].Due = list[i].Due || l.Due; !l.Due && list[i].Next < 0 {
			list[i].Next = l.Next // they come in the order of time
		}
		return nil
	})
	return list, err
}

func (d memDialect) Claim(ctx context.Context, c dialect.Conn, q dialect.ClaimParams, each func(dialect.Row) error) error {
	gone, _ := d.gone.Load(c)
	ids, _ := gone.(map[string]bool)
	d.claims(q, ids)
	p := memClaim{ClaimParams: q}
	for _, l := range q.Partitions {
		p.Cursors = append(p.Cursors, q.Cursors[l])
	}
	return d.ask(ctx, c, "CLAIM", p, each)
}

// memClaim has a mark for each partition.
type memClaim struct {
	dialect.ClaimParams
	Cursors []dialect.Cursor
}

func (d memDialect) Move(ctx context.Context, c dialect.Conn, _ dialect.From, rows []dialect.Outcome) ([]string, error) {
	ids := make([]string, len(rows))
	for i, r := range rows {
		ids[i] = r.ID
	}
	return d.take(ctx, c, "MOVE", rows, ids)
}

func (d memDialect) Requeue(ctx context.Context, c dialect.Conn, rows []dialect.Requeued) ([]string, error) {
	ids := make([]string, len(rows))
	for i, r := range rows {
		ids[i] = r.ID
	}
	return d.take(ctx, c, "REQUEUE", rows, ids)
}

func (d memDialect) take(ctx context.Context, c dialect.Conn, word string, rows any, ids []string) ([]string, error) {
	list, err := d.texts(ctx, c, word, rows)
	if tx, ok := c.(*sql.Tx); ok && err == nil {
		gone, _ := d.gone.LoadOrStore(tx, map[string]bool{})
		for _, id := range ids {
			gone.(map[string]bool)[id] = true
		}
	}
	return list, err
}

func (d memDialect) Orphans(ctx context.Context, c dialect.Conn, limit int, each func(dialect.Row) error) error {
	return d.ask(ctx, c, "ORPHANS", limit, each)
}

func (d memDialect) texts(ctx context.Context, c dialect.Conn, word string, param any) (list []string, err error) {
	err = d.ask(ctx, c, word, param, func(r dialect.Row) error {
		list = append(list, "")
		return r.Scan(&list[len(list)-1])
	})
	return list, err
}

func (d memDialect) ask(ctx context.Context, c dialect.Conn, word string, param any, each func(dialect.Row) error) error {
	if _, number := param.(int); !number {
		b, err := json.Marshal(param)
		if err != nil {
			return err
		}
		param = string(b)
	}
	rows, err := c.QueryContext(ctx, word, param)
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

// memNode is a process's way to the database, which may fail.
type memNode struct {
	m     *memory
	fault func(what string) memFault
}

// memFault is what happens to one statement. The connection does not survive an error.
type memFault struct {
	before, after time.Duration // it is delayed on its way, or its reply is
	err           error         // what the client is told instead of the reply
	executed      bool          // with err: it takes effect nevertheless
	late          time.Duration // with executed: so much later
}

func (n *memNode) Driver() driver.Driver { return nil }

func (n *memNode) Connect(context.Context) (driver.Conn, error) { return &memConn{n: n}, nil }

type memConn struct {
	n      *memNode
	tx     *memTx
	ctx    context.Context // of tx
	broken bool
}

// stateError is an error with an SQLSTATE.
type stateError string

func (e stateError) Error() string    { return "SQLSTATE " + string(e) }
func (e stateError) SQLState() string { return string(e) }

const (
	errBusy  = stateError("55P03")
	errRetry = stateError("40001")
)

var errLost = fmt.Errorf("the connection was lost: %w", io.ErrUnexpectedEOF)

func (c *memConn) IsValid() bool { return !c.broken }
func (c *memConn) Close() error {
	if c.tx != nil {
		c.tx.end(false)
	}
	return nil
}
func (c *memConn) Prepare(string) (driver.Stmt, error) { return nil, errors.ErrUnsupported }
func (c *memConn) Begin() (driver.Tx, error)           { return nil, errors.ErrUnsupported }

func (c *memConn) BeginTx(ctx context.Context, _ driver.TxOptions) (driver.Tx, error) {
	c.tx, c.ctx = c.n.m.begin(), ctx
	f := func(tx *memTx) memResult {
		if c.n.m.serial {
			tx.lock("anything") // as SQLite's immediate transactions do
		}
		return memResult{}
	}
	if _, err := c.do(ctx, "BEGIN", f); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *memConn) Commit() error {
	tx := c.tx
	if c.broken {
		return errLost
	}
	f := c.n.fault("COMMIT")
	if err := dialect.Wait(c.ctx, f.before); err != nil {
		f = memFault{err: err}
	}
	switch {
	case f.err == nil:
		tx.end(true)
		f.err = dialect.Wait(c.ctx, f.after)
	case f.executed && f.late > 0:
		time.AfterFunc(f.late, func() { tx.end(true) })
	default:
		tx.end(f.executed)
	}
	c.tx, c.broken = nil, f.err != nil
	return f.err
}

func (c *memConn) Rollback() error {
	if c.tx != nil {
		c.tx.end(false)
		c.tx = nil
	}
	return nil
}

func (c *memConn) do(ctx context.Context, what string, f memStatement) (r memResult, err error) {
	if c.broken {
		return r, errLost
	}
	tx := c.tx
	if tx == nil {
		tx = c.n.m.begin()
		defer func() { tx.end(err == nil) }()
	}
	fault := c.n.fault(what)
	defer func() {
		if err == nil {
			return
		}
		c.broken = true
		if c.tx == nil || fault.late == 0 {
			tx.end(false)
		} else {
			time.AfterFunc(fault.late, func() { tx.end(false) }) // the server has not noticed yet
		}
	}()
	if err := dialect.Wait(ctx, fault.before); err != nil {
		return r, err
	}
	if fault.err != nil && (!fault.executed || c.tx != nil) {
		return r, fault.err
	}
	if fault.late > 0 {
		late := c.n.m.begin()
		time.AfterFunc(fault.late, func() {
			_, err := c.n.m.exec(context.Background(), late, f)
			late.end(err == nil)
		})
		return r, fault.err
	}
	if r, err = c.n.m.exec(ctx, tx, f); err != nil {
		return r, err
	}
	if c.tx == nil {
		tx.end(true)
	}
	if fault.err != nil {
		return r, fault.err
	}
	return r, dialect.Wait(ctx, fault.after)
}

func (c *memConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	r, err := c.do(ctx, query, c.n.m.statement(query, values(args)))
	return driver.RowsAffected(r.n), err
}

func (c *memConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	r, err := c.do(ctx, query, c.n.m.statement(query, values(args)))
	if err != nil {
		return nil, err
	}
	return &memRows{r}, nil
}

func values(args []driver.NamedValue) []any {
	list := make([]any, len(args))
	for i, a := range args {
		list[i] = a.Value
	}
	return list
}

type memRows struct{ memResult }

func (r *memRows) Columns() []string { return make([]string, r.columns) }
func (r *memRows) Close() error      { return nil }
func (r *memRows) Next(dest []driver.Value) error {
	if len(r.rows) == 0 {
		return io.EOF
	}
	copy(dest, r.rows[0])
	r.rows = r.rows[1:]
	return nil
}
