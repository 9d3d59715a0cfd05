package outbox_test

import (
	"context"
	"testing"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
)

// Where a driver prepares a statement each time, those of the dispatcher are prepared once; also on
// a pool that has a single connection, which is taken while a transaction is open.
func TestStatementsAreKeptPrepared(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		p := dbtest.Install(t, db, quick(), func(p *outbox.Plugin) {
			p.Handle("fine", func(context.Context) error { return nil })
			p.Handle("wrong", func(context.Context) error { return context.Canceled })
		})
		d, pool := p.Statements()
		pool.SetMaxOpenConns(1)
		dbtest.Start(t, p)
		run := func() {
			for _, path := range []string{"fine", "wrong"} {
				dbtest.Ended(t, db, dbtest.Create(t, db, path, nil).ID)
			}
		}
		if run(); !d.Keep() {
			if prepared := p.Prepared(); len(prepared) > 0 {
				t.Errorf("prepared without need: %q", prepared)
			}
			return
		}
		dbtest.Eventually(t, "probe, claim and both ways to finish are kept", func() bool {
			run()
			return len(p.Prepared()) >= 6
		})
		for range 10 {
			run()
		}
		if prepared := p.Prepared(); len(prepared) > 10 {
			t.Errorf("their texts vary: %q", prepared)
		}
	})
}
