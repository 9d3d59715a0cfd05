package outbox_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
)

// shardPool is the pool of gorm.io/sharding: what it wraps, with a Commit and a Rollback that do
// nothing and a BeginTx that gives the pool back where it wraps a *sql.DB.
type shardPool struct{ gorm.ConnPool }

func (p *shardPool) BeginTx(ctx context.Context, opts *sql.TxOptions) (gorm.ConnPool, error) {
	if b, ok := p.ConnPool.(gorm.ConnPoolBeginner); ok {
		return b.BeginTx(ctx, opts)
	}
	return p, nil
}

func (p *shardPool) Commit() error   { return nil }
func (p *shardPool) Rollback() error { return nil }

// hidingPool does the same, and does not show what it wraps.
type hidingPool struct{ shard *shardPool }

func (p hidingPool) PrepareContext(ctx context.Context, q string) (*sql.Stmt, error) {
	return p.shard.PrepareContext(ctx, q)
}
func (p hidingPool) ExecContext(ctx context.Context, q string, args ...any) (sql.Result, error) {
	return p.shard.ExecContext(ctx, q, args...)
}
func (p hidingPool) QueryContext(ctx context.Context, q string, args ...any) (*sql.Rows, error) {
	return p.shard.QueryContext(ctx, q, args...)
}
func (p hidingPool) QueryRowContext(ctx context.Context, q string, args ...any) *sql.Row {
	return p.shard.QueryRowContext(ctx, q, args...)
}
func (p hidingPool) BeginTx(ctx context.Context, opts *sql.TxOptions) (*sql.Tx, error) {
	return p.shard.ConnPool.(gorm.TxBeginner).BeginTx(ctx, opts)
}
func (p hidingPool) Commit() error   { return nil }
func (p hidingPool) Rollback() error { return nil }

// through is a handle whose statements go through another pool, as a plugin's callbacks leave it.
func through(tx *gorm.DB, wrap func(gorm.ConnPool) gorm.ConnPool) *gorm.DB {
	tx = tx.WithContext(tx.Statement.Context)
	tx.Statement.ConnPool = wrap(tx.Statement.ConnPool)
	return tx
}

// Commit and Rollback make no transaction of a pool: what is to be all or nothing needs one of its
// own.
func TestPoolThatIsNoTransaction(t *testing.T) {
	shard := func(c gorm.ConnPool) gorm.ConnPool { return &shardPool{c} }
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		_, _ = shop(t, db, outbox.Options{})
		held := dbtest.Create(t, db, cancelOrder, nil, outbox.Key("held"), outbox.StartAfter(time.Hour))
		batch := func(key string) []outbox.NewTask {
			return []outbox.NewTask{{Func: cancelOrder}, {Func: cancelOrder, Options: []outbox.CreateOption{outbox.Key(key)}}}
		}
		for name, tx := range map[string]*gorm.DB{
			"sharding":           through(db, shard),
			"sharding, twice":    through(through(db, shard), shard),
			"sharding, prepared": through(db.Session(&gorm.Session{PrepareStmt: true}), shard),
			"one that hides":     through(db, func(c gorm.ConnPool) gorm.ConnPool { return hidingPool{&shardPool{c}} }),
		} {
			t.Run(name, func(t *testing.T) {
				before := dbtest.Count(t, db, &outbox.TaskModel{})
				if _, err := outbox.CreateBatch(tx, batch("held")...); !errors.Is(err, outbox.ErrDuplicateKey) {
					t.Errorf("a key that is held: %v", err)
				}
				if n := dbtest.Count(t, db, &outbox.TaskModel{}); n != before {
					t.Errorf("%d rows are left of a batch that failed", n-before)
				}
				if made, err := outbox.CreateBatch(tx, batch(fmt.Sprint("free ", name))...); err != nil || len(made) != 2 {
					t.Errorf("a free key: %v", err)
				}
				if err := outbox.Cancel(tx, dbtest.Create(t, tx, cancelOrder, nil).ID); err != nil {
					t.Error(err)
				}
			})
			t.Run(name+", around a transaction", func(t *testing.T) {
				if name == "one that hides" {
					t.Skip("nobody can know")
				}
				var made *outbox.TaskModel
				undo := errors.New("undo")
				err := db.Transaction(func(tx *gorm.DB) error {
					tx = through(tx, shard)
					made = dbtest.Create(t, tx, cancelOrder, nil)
					if _, err := outbox.CreateBatch(tx, batch("held")...); !errors.Is(err, outbox.ErrDuplicateKey) {
						t.Errorf("a key that is held: %v", err)
					}
					if !taskExists(t, tx, made.ID) {
						t.Error("what was created before the batch is gone")
					}
					return undo
				})
				if !errors.Is(err, undo) || taskExists(t, db, made.ID) {
					t.Errorf("a rolled back task is there, %v", err)
				}
			})
		}
		if !taskExists(t, db, held.ID) {
			t.Error("the task that holds the key is gone")
		}
	})
}

func TestRequireTxOnForeignPools(t *testing.T) {
	shard := func(c gorm.ConnPool) gorm.ConnPool { return &shardPool{c} }
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		shop(t, db, outbox.Options{RequireTx: true})
		if _, err := outbox.Create(through(db, shard), cancelOrder, nil); !errors.Is(err, outbox.ErrNoTransaction) {
			t.Errorf("a pool with Commit: %v", err)
		}
		if err := db.Transaction(func(tx *gorm.DB) error {
			_, err := outbox.Create(through(tx, shard), cancelOrder, nil)
			return err
		}); err != nil {
			t.Errorf("a wrapped transaction: %v", err)
		}
	})
}

// The wake-up finds the end of a transaction through what is wrapped around it.
func TestWakeUpThroughAForeignPool(t *testing.T) {
	shard := func(c gorm.ConnPool) gorm.ConnPool { return &shardPool{c} }
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		var ran <-chan string
		p := dbtest.Install(t, db, hourly(), func(p *outbox.Plugin) { ran = notes(p, "note") })
		startAwake(t, db, p, "note", ran)
		var made *outbox.TaskModel
		if err := db.Transaction(func(tx *gorm.DB) error {
			made = dbtest.Create(t, through(tx, shard), "note", nil)
			held(1200 * time.Millisecond) // longer than the database is asked without knowing the end
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if id := dbtest.Receive(t, ran); id != made.ID {
			t.Errorf("%s ran, not %s", id, made.ID)
		}
	})
}
