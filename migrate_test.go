package outbox_test

import (
	"context"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
)

func TestMigrateEndsWithItsContext(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		p := dbtest.Install(t, db, outbox.Options{}, nil)
		pool, err := db.DB()
		if err != nil {
			t.Fatal(err)
		}
		pool.SetMaxOpenConns(1)
		held, err := pool.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer held.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		done := make(chan error, 1)
		go func() { done <- p.Migrate(ctx) }()
		if err := dbtest.Receive(t, done); err == nil {
			t.Error("migrated without a connection")
		}
	})
}

// Migrate's context ends while it has the lock and waits for a table that another session has
// locked. MySQL's lock is the session's: in the pool, the connection would keep every later Migrate
// away.
func TestMigrateThatIsCutShortLeavesNoLock(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		lock, unlock := []string{"BEGIN", "LOCK TABLE outbox_schema IN ACCESS EXCLUSIVE MODE"}, "ROLLBACK"
		switch db.Dialector.Name() {
		case "sqlite":
			t.Skip("the lock is the transaction's")
		case "mysql":
			lock, unlock = []string{"LOCK TABLES outbox_schema WRITE"}, "UNLOCK TABLES"
		}
		p := dbtest.Install(t, db, outbox.Options{}, nil)
		pool, err := db.DB()
		if err != nil {
			t.Fatal(err)
		}
		holder, err := pool.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer holder.Close()
		for _, statement := range lock {
			if _, err := holder.ExecContext(t.Context(), statement); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		if err := p.Migrate(ctx); err == nil {
			t.Fatal("it did not wait for the table")
		}
		if _, err := holder.ExecContext(t.Context(), unlock); err != nil {
			t.Fatal(err)
		}
		// Another session: the one that has the lock could take it again. The lock is waited for
		// for 10 s.
		again, cancel := context.WithTimeout(t.Context(), 8*time.Second)
		defer cancel()
		var idle []interface{ Close() error }
		for pool.Stats().Idle > 0 {
			c, err := pool.Conn(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			idle = append(idle, c)
		}
		if err := p.Migrate(again); err != nil {
			t.Errorf("the next Migrate: %v", err)
		}
		for _, c := range idle {
			_ = c.Close()
		}
	})
}
