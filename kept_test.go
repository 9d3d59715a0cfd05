package outbox_test

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

// Where a driver prepares a statement each time, those of the dispatcher are prepared once; also on a pool that has a single
// connection, which is taken while a transaction is open.
func TestStatementsAreKeptPrepared(t *testing.T) {
	eachDB(t, func(t *testing.T, db *gorm.DB) {
		p := install(t, db, quick(), func(p *outbox.Plugin) {
			p.Handle("fine", func(context.Context) error { return nil })
			p.Handle("wrong", func(context.Context) error { return context.Canceled })
		})
		d, pool := p.Statements()
		pool.SetMaxOpenConns(1)
		start(t, p)
		run := func() {
			for _, path := range []string{"fine", "wrong"} {
				ended(t, db, create(t, db, path, nil).ID)
			}
		}
		if run(); !d.Keep() {
			if kept := p.Kept(); len(kept) > 0 {
				t.Errorf("kept without need: %q", kept)
			}
			return
		}
		eventually(t, "probe, claim and both ways to finish are kept", func() bool {
			run()
			return len(p.Kept()) >= 6
		})
		for range 10 {
			run()
		}
		if kept := p.Kept(); len(kept) > 10 {
			t.Errorf("their texts vary: %q", kept)
		}
	})
}

// The loop, the writer and the heartbeat ask for statements at any time, also while another prepares what was asked for.
func TestStatementsAreAskedForAtOnce(t *testing.T) {
	db := testdb.SQLite(t)
	p := install(t, db, quick(), nil)
	p.PrepareKept(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for i := range 100 {
			p.AskKept(fmt.Sprintf("SELECT %d", i))
		}
	})
	for range 1000 {
		p.PrepareKept(t.Context())
	}
}
