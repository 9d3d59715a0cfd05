package outbox_test

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
	"github.com/gorm-outbox/outbox/internal/dialect"
)

// unfinishable is a database on which a run's transaction cannot be finished: fail is called for
// each finish in a transaction, with the number of those before.
type unfinishable struct {
	dialect.Dialect
	fail func(ctx context.Context, c dialect.Conn, before int32) error
	n    *atomic.Int32
}

func (d unfinishable) Move(ctx context.Context, c dialect.Conn, from dialect.From, rows []dialect.Outcome) ([]string, error) {
	if rows[0].Status == "success" {
		if err := d.fail(ctx, c, d.n.Add(1)-1); err != nil {
			return nil, err
		}
	}
	return d.Dialect.Move(ctx, c, from, rows)
}

// sqlState is an error of PostgreSQL's by its code, as every database's are classified.
type sqlState string

func (s sqlState) Error() string    { return "SQLSTATE " + string(s) }
func (s sqlState) SQLState() string { return string(s) }

// A transaction that does not come to its end while the database works is the task's own trouble:
// its handler is called three times at most, each time is logged and kept, and the task ends as
// error.
func TestTransactionThatNeverEndsIsGivenUp(t *testing.T) {
	for name, fail := range map[string]func(ctx context.Context, c dialect.Conn, before int32) error{
		"its tables are not found":  func(context.Context, dialect.Conn, int32) error { return sqlState("42P01") },
		"its session is killed":     func(context.Context, dialect.Conn, int32) error { return sqlState("57P01") },
		"its statement is canceled": func(context.Context, dialect.Conn, int32) error { return sqlState("57014") },
		"its transaction is undone": func(context.Context, dialect.Conn, int32) error { return sqlState("25P02") },
	} {
		t.Run(name, func(t *testing.T) {
			dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
				var log logBuffer
				var calls atomic.Int32
				opts := quick()
				opts.Logger = log.logger()
				p := dbtest.Install(t, db, opts, func(p *outbox.Plugin) {
					p.Handle("tx", func(context.Context, *gorm.DB) error { calls.Add(1); return nil })
				})
				p.Intercept(func(d dialect.Dialect) dialect.Dialect { return unfinishable{d, fail, new(atomic.Int32)} })
				dbtest.Start(t, p)
				past := dbtest.Ended(t, db, dbtest.Create(t, db, "tx", nil).ID)
				if past.Status != outbox.StatusError || past.Reason != outbox.ReasonTransaction || past.Crashes != 3 || len(past.Errors) != 2 ||
					!strings.Contains(text(past.Error), "SQLSTATE") {
					t.Errorf("%+v, %s", past, text(past.Error))
				}
				if n := calls.Load(); n != 3 {
					t.Errorf("the handler was called %d times", n)
				}
				// A line comes after what it says is to be read in the tables.
				dbtest.Eventually(t, "two warnings and an error", func() bool {
					return log.lines("level=WARN", past.ID, "SQLSTATE") == 2 && log.lines("level=ERROR", past.ID, "SQLSTATE") == 1
				})
			})
		})
	}
}

// refusing is a database that refuses a run's transaction for good, as drivers do some levels of
// isolation.
type refusing struct{ dialect.Dialect }

func (d refusing) Begin(ctx context.Context, c dialect.Conn) error {
	if _, ofRun := c.(*sql.Tx); ofRun {
		return errors.New("no such level")
	}
	return d.Dialect.Begin(ctx, c)
}

// Here the handler is not called at all.
func TestTransactionThatNeverBeginsIsGivenUp(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		var log logBuffer
		opts := quick()
		opts.Logger = log.logger()
		p := dbtest.Install(t, db, opts, func(p *outbox.Plugin) {
			p.Handle("tx", func(context.Context, *gorm.DB) error { t.Error("it was called"); return nil })
		})
		p.Intercept(func(d dialect.Dialect) dialect.Dialect { return refusing{d} })
		dbtest.Start(t, p)
		past := dbtest.Ended(t, db, dbtest.Create(t, db, "tx", nil).ID)
		if past.Status != outbox.StatusError || past.Reason != outbox.ReasonTransaction || past.Attempt != 3 || !strings.Contains(text(past.Error), "begin") {
			t.Errorf("%+v, %s", past, text(past.Error))
		}
		dbtest.Eventually(t, "two warnings", func() bool { return log.lines("level=WARN", past.ID, "begin") == 2 })
	})
}

// away is a database that is away for a while: nothing can be written through it.
type away struct {
	unfinishable
	gone *atomic.Bool
}

func (d away) Rebind(query string) string {
	if d.gone.Load() && strings.Contains(query, "beats = beats + 1") {
		return "not a statement"
	}
	return d.Dialect.Rebind(query)
}

// An outage may hit the end of a transaction any number of times: the task is not to blame.
func TestOutageAtTheEndOfATransactionDoesNotCount(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		var log logBuffer
		opts := quick()
		opts.Heartbeat, opts.Logger = time.Minute, log.logger()
		p := dbtest.Install(t, db, opts, func(p *outbox.Plugin) {
			p.Handle("tx", func(context.Context, *gorm.DB) error { return nil })
		})
		var gone atomic.Bool
		fail := func(_ context.Context, _ dialect.Conn, before int32) error {
			if gone.Store(before < 4); before < 4 {
				return sqlState("57P03")
			}
			return nil
		}
		p.Intercept(func(d dialect.Dialect) dialect.Dialect { return away{unfinishable{d, fail, new(atomic.Int32)}, &gone} })
		dbtest.Start(t, p)
		past := dbtest.Ended(t, db, dbtest.Create(t, db, "tx", nil).ID)
		if past.Status != outbox.StatusSuccess || past.Crashes != 0 || past.Attempt != 5 || past.Uncounted != 4 {
			t.Errorf("%+v, %s", past, text(past.Error))
		}
		if n := log.lines("level=WARN", "finish a handler's transaction"); n != 1 {
			t.Errorf("%d warnings of one outage", n)
		}
		dbtest.Eventually(t, "it works again", func() bool { return log.lines("level=INFO", "recovered", "finish a handler's transaction") == 1 })
	})
}

// A time limit that is over at the end of the transaction counts as one.
func TestTimeLimitAtTheEndOfATransactionCounts(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		var calls atomic.Int32
		p := dbtest.Install(t, db, quick(), func(p *outbox.Plugin) {
			p.Handle("tx", func(context.Context, *gorm.DB) error { calls.Add(1); return nil })
		})
		wait := func(ctx context.Context, _ dialect.Conn, _ int32) error { <-ctx.Done(); return ctx.Err() }
		p.Intercept(func(d dialect.Dialect) dialect.Dialect { return unfinishable{d, wait, new(atomic.Int32)} })
		dbtest.Start(t, p)
		past := dbtest.Ended(t, db, dbtest.Create(t, db, "tx", nil, outbox.Timeout(100*time.Millisecond), outbox.MaxAttempts(2)).ID)
		if past.Reason != outbox.ReasonTimeout || calls.Load() != 2 {
			t.Errorf("%s %s, %d calls: %s", past.Status, past.Reason, calls.Load(), text(past.Error))
		}
	})
}

// What PostgreSQL can do to a COMMIT: a deferred trigger that raises, or ends the session.
func TestCommitThatFailsEachTime(t *testing.T) {
	for _, tt := range []struct {
		name, body string
		calls      int32
	}{
		{"a trigger raises", "RAISE EXCEPTION 'no'", 1},
		{"a trigger raises what looks like a passing trouble", "RAISE EXCEPTION 'no' USING ERRCODE = '55P03'", 3},
		{"a trigger ends the session", "PERFORM pg_terminate_backend(pg_backend_pid())", 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			db := dbtest.Databases[1].Open(t)
			if err := errors.Join(db.AutoMigrate(&effect{}),
				db.Exec("CREATE FUNCTION never() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "+tt.body+"; RETURN NULL; END $$").Error,
				db.Exec("CREATE CONSTRAINT TRIGGER never AFTER INSERT ON effects DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION never()").Error,
			); err != nil {
				t.Fatal(err)
			}
			var log logBuffer
			var calls atomic.Int32
			opts := quick()
			opts.Logger = log.logger()
			p := dbtest.Install(t, db, opts, func(p *outbox.Plugin) {
				p.Handle("tx", func(_ context.Context, tx *gorm.DB) error { calls.Add(1); return tx.Create(&effect{"a", "b"}).Error })
				p.Handle("plain.tx", func(context.Context, *gorm.DB) error { return nil })
			})
			dbtest.Start(t, p)
			past := dbtest.Ended(t, db, dbtest.Create(t, db, "tx", nil).ID)
			if past.Status != outbox.StatusError || past.Reason != outbox.ReasonTransaction || calls.Load() != tt.calls {
				t.Errorf("%s %s after %d calls: %s", past.Status, past.Reason, calls.Load(), text(past.Error))
			}
			dbtest.Eventually(t, "each call is logged", func() bool {
				return log.lines("level=WARN", past.ID)+log.lines("level=ERROR", past.ID) == int(tt.calls)
			})
			if past := dbtest.Ended(t, db, dbtest.Create(t, db, "plain.tx", nil).ID); past.Status != outbox.StatusSuccess {
				t.Errorf("%+v", past)
			}
		})
	}
}
