package outbox_test

import (
	"context"
	"database/sql"
	"sync"
	"testing"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
	"github.com/gorm-outbox/outbox/internal/dialect"
)

// claims counts probes, claims and those claims that begin at the head of a partition instead of
// where the last one ended.
type claims struct {
	dialect.Dialect
	counts *claimCounts
}

type claimCounts struct {
	mu                   sync.Mutex
	probes, all, atHeads int
}

func (c *claimCounts) add(p dialect.ClaimParams) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all++
	if len(p.Cursors) == 0 {
		c.atHeads++
	}
}

func (c claims) Poll(ctx context.Context, conn dialect.Conn) ([]dialect.PartitionState, error) {
	c.counts.mu.Lock()
	c.counts.probes++
	c.counts.mu.Unlock()
	return c.Dialect.Poll(ctx, conn)
}

func (c claims) Claim(ctx context.Context, conn dialect.Conn, p dialect.ClaimParams, each func(dialect.Row) error) error {
	c.counts.add(p)
	return c.Dialect.Claim(ctx, conn, p, each)
}

// exchangingClaims are those of a database that can finish and claim in one statement.
type exchangingClaims struct{ claims }

func (c exchangingClaims) CompleteAndClaim(ctx context.Context, conn dialect.Conn, rows []dialect.Outcome, p dialect.ClaimParams, each func(dialect.Row) error) ([]string, bool, error) {
	c.counts.add(p)
	return c.Dialect.(dialect.Completer).CompleteAndClaim(ctx, conn, rows, p, each)
}

func (c exchangingClaims) Complete(ctx context.Context, conn dialect.Conn, rows []dialect.Outcome) ([]string, bool, error) {
	return c.Dialect.(dialect.Completer).Complete(ctx, conn, rows)
}

// Behind a transaction that is left open a claim from the head of a partition walks over the dead
// rows of all earlier ones.
func TestRefillsBeginWhereTheLastClaimEnded(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		const tasks, slots = 2000, 20
		p := dbtest.Install(t, db, outbox.Options{Concurrency: slots}, func(p *outbox.Plugin) {
			p.Handle("fine", func(context.Context) error { return nil })
		})
		batch := make([]outbox.NewTask, tasks)
		for i := range batch {
			batch[i].Func = "fine"
		}
		if _, err := outbox.CreateBatch(db, batch...); err != nil {
			t.Fatal(err)
		}
		if d, pool := p.Statements(); !d.Serial() { // where it keeps no writer out
			snapshot, err := pool.BeginTx(t.Context(), &sql.TxOptions{Isolation: sql.LevelRepeatableRead})
			if err != nil {
				t.Fatal(err)
			}
			defer snapshot.Rollback()
			if _, err := snapshot.Exec("SELECT count(*) FROM outbox_tasks"); err != nil {
				t.Fatal(err)
			}
		}
		counts := new(claimCounts)
		p.Intercept(func(d dialect.Dialect) dialect.Dialect {
			if _, ok := d.(dialect.Completer); ok {
				return exchangingClaims{claims{d, counts}}
			}
			return claims{d, counts}
		})
		dbtest.Start(t, p)
		dbtest.Eventually(t, "all have ended", func() bool { return dbtest.Count(t, db, &outbox.HistoryModel{}) == tasks })
		counts.mu.Lock()
		defer counts.mu.Unlock()
		// One of the loop's and one of the writer's may begin with the same probe.
		if counts.atHeads > 2*counts.probes || counts.all < tasks/slots {
			t.Errorf("of %d claims %d began at the head, with %d probes", counts.all, counts.atHeads, counts.probes)
		}
		t.Logf("%+v", counts)
	})
}
