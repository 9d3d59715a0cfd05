package scenarios_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gorm.io/driver/mysql"
	"gorm.io/driver/postgres"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
)

// lossy is a driver that can swallow the reply to one claim, which takes effect, and be without its
// database from then on; or be so after an INSERT, whose reply comes.
type lossy struct {
	real           driver.Driver
	dsn            string
	armed, inserts atomic.Bool
	down           atomic.Bool
}

// open returns a handle whose every connection is of this driver.
func (l *lossy) open(t *testing.T, database string) *gorm.DB {
	t.Helper()
	known, err := processDB(t, l.dsn).DB()
	if err != nil {
		t.Fatal(err)
	}
	l.real = known.Driver()
	pool := sql.OpenDB(l)
	t.Cleanup(func() { _ = pool.Close() })
	var dialector gorm.Dialector = postgres.New(postgres.Config{Conn: pool})
	if database == "sqlite" {
		dialector = sqlite.New(sqlite.Config{Conn: pool})
	} else if database == "mysql" {
		dialector = mysql.New(mysql.Config{Conn: pool})
	}
	db, err := gorm.Open(dialector, &gorm.Config{Logger: logger.Discard})
	if err != nil {
		t.Fatal(err)
	}
	return db
}

// ran is told of each statement's end.
func (l *lossy) ran(query string, err error) {
	if err == nil && strings.Contains(query, "INSERT INTO") && l.inserts.Load() {
		l.down.Store(true)
	}
}

func (l *lossy) Driver() driver.Driver { return l.real }

func (l *lossy) Connect(context.Context) (driver.Conn, error) {
	if l.down.Load() {
		return nil, io.ErrUnexpectedEOF
	}
	c, err := l.real.Open(l.dsn)
	return &lossyConn{Conn: c, l: l}, err
}

type lossyConn struct {
	driver.Conn
	l      *lossy
	claims bool // the transaction does
}

const claimText = "state = 'running', attempt"

func (c *lossyConn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	if c.l.down.Load() {
		return nil, io.ErrUnexpectedEOF
	}
	c.claims = false
	tx, err := c.Conn.(driver.ConnBeginTx).BeginTx(ctx, opts)
	return lossyTx{tx, c}, err
}

// lossyTx loses the reply to the COMMIT of a claim that is some statements in a transaction.
type lossyTx struct {
	driver.Tx
	c *lossyConn
}

func (t lossyTx) Commit() error {
	armed := t.c.l.armed.Load()
	err := t.Tx.Commit()
	if err == nil && t.c.claims && armed && t.c.l.armed.CompareAndSwap(true, false) {
		t.c.l.down.Store(true)
		err = io.ErrUnexpectedEOF
	}
	return err
}

// Prepare is how some drivers run what has parameters, and what is kept prepared.
func (c *lossyConn) Prepare(query string) (driver.Stmt, error) {
	if c.l.down.Load() {
		return nil, io.ErrUnexpectedEOF
	}
	s, err := c.Conn.Prepare(query)
	return lossyStmt{s, c, query}, err
}

type lossyStmt struct {
	driver.Stmt
	c     *lossyConn
	query string
}

func (s lossyStmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	if s.c.l.down.Load() {
		return nil, io.ErrUnexpectedEOF
	}
	s.c.claims = s.c.claims || isClaim(s.query)
	result, err := s.Stmt.(driver.StmtExecContext).ExecContext(ctx, args)
	s.c.l.ran(s.query, err)
	return result, err
}

func (s lossyStmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	if s.c.l.down.Load() {
		return nil, io.ErrUnexpectedEOF
	}
	armed := s.c.l.armed.Load()
	rows, err := s.Stmt.(driver.StmtQueryContext).QueryContext(ctx, args)
	s.c.l.ran(s.query, err)
	return s.c.lose(armed, s.query, rows, err)
}

func isClaim(query string) bool {
	return strings.Contains(strings.ReplaceAll(query, "t.", ""), claimText)
}

func (c *lossyConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	if c.l.down.Load() {
		return nil, io.ErrUnexpectedEOF
	}
	result, err := c.Conn.(driver.ExecerContext).ExecContext(ctx, query, args)
	c.l.ran(query, err)
	return result, err
}

func (c *lossyConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	if c.l.down.Load() {
		return nil, io.ErrUnexpectedEOF
	}
	armed := c.l.armed.Load()
	rows, err := c.Conn.(driver.QueryerContext).QueryContext(ctx, query, args)
	c.l.ran(query, err)
	return c.lose(armed, query, rows, err)
}

// lose loses the reply to a claim that has found something, if it was sent when that was wanted:
// the statement that finishes one task may claim the next, and what it did is seen before its reply
// is here.
func (c *lossyConn) lose(armed bool, query string, rows driver.Rows, err error) (driver.Rows, error) {
	if err != nil || !armed || !isClaim(query) {
		return rows, err
	}
	values := make([]driver.Value, len(rows.Columns()))
	if err = rows.Next(values); err == io.EOF {
		return noRows{rows}, nil
	}
	for err == nil {
		err = rows.Next(values)
	}
	_ = rows.Close()
	c.l.armed.Store(false)
	c.l.down.Store(true)
	return nil, io.ErrUnexpectedEOF
}

// noRows are rows that have been read to their end.
type noRows struct{ driver.Rows }

func (noRows) Next([]driver.Value) error { return io.EOF }

func (c *lossyConn) CheckNamedValue(v *driver.NamedValue) error {
	if checker, ok := c.Conn.(driver.NamedValueChecker); ok {
		return checker.CheckNamedValue(v)
	}
	return driver.ErrSkip
}

// On MySQL an INSERT returns nothing. A creation that has taken effect does not fail because of
// what would have been asked after it.
func TestCreationIsOverWithTheInsert(t *testing.T) {
	for _, d := range dbtest.Databases {
		t.Run(d.Name, func(t *testing.T) {
			t.Parallel()
			l := &lossy{dsn: d.DSN(t)}
			db := l.open(t, d.Dialect)
			dbtest.Install(t, db, dbtest.ShortHeartbeats(), func(p *outbox.Plugin) {
				p.Handle("quick", func(context.Context) error { return nil })
			})
			for _, tasks := range [][]outbox.NewTask{{{Func: "quick"}}, {{Func: "quick"}, {Func: "quick", Options: []outbox.CreateOption{outbox.StartAfter(time.Hour)}}}} {
				l.inserts.Store(true)
				made, err := outbox.CreateBatch(db, tasks...)
				l.inserts.Store(false)
				l.down.Store(false)
				if err != nil {
					t.Fatal(err)
				}
				for _, m := range made {
					if waiting, _, err := outbox.Lookup(db, m.ID); err != nil || waiting == nil || !waiting.RunAt.Equal(m.RunAt) || !waiting.CreatedAt.Equal(m.CreatedAt) {
						t.Errorf("made %+v, stored %+v, %v", m, waiting, err)
					}
				}
			}
		})
	}
}

func TestClaimWhoseReplyIsLostIsGivenBack(t *testing.T) {
	for _, d := range dbtest.Databases {
		for name, outage := range map[string]time.Duration{"short outage": 0, "outage longer than the limit": dbtest.ShortLimit + time.Second} {
			t.Run(d.Name+"/"+name, func(t *testing.T) {
				t.Parallel()
				l := &lossy{dsn: d.DSN(t)}
				plain, db := processDB(t, l.dsn), l.open(t, d.Dialect)
				p := dbtest.Install(t, db, dbtest.ShortHeartbeats(), func(p *outbox.Plugin) {
					p.Handle("quick", func(context.Context) error { return nil })
				})
				dbtest.Start(t, p)
				dbtest.Ended(t, db, dbtest.Create(t, db, "quick", nil).ID)
				l.armed.Store(true)
				task := dbtest.Create(t, db, "quick", nil)
				dbtest.Eventually(t, "the reply is lost", l.down.Load)
				var row outbox.TaskModel
				dbtest.Eventually(t, "the claim has taken effect", func() bool {
					return plain.First(&row, "id = ?", task.ID).Error == nil && row.State == outbox.StateRunning
				})
				<-time.After(outage)
				l.down.Store(false)
				if h := dbtest.Ended(t, db, task.ID); h.Status != outbox.StatusSuccess || h.Attempt != 2 || h.Uncounted != 1 || h.Crashes != 0 {
					t.Errorf("%+v", h)
				}
			})
		}
	}
}
