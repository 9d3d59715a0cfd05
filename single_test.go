package outbox_test

import (
	"context"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
	"github.com/gorm-outbox/outbox/internal/dialect"
)

// A server may end the session of a process that has just ended a moment later.
func TestSingleProcessWaitsForASessionThatEnds(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		if db.Name() == "sqlite" {
			t.Skip("a file's lock ends with its process")
		}
		opts := quick()
		opts.SingleProcess = true
		p := dbtest.Install(t, db, opts, nil)
		d, pool := p.Statements()
		conn, err := pool.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		locker := d.(dialect.SessionLocker)
		if got, err := locker.TryAlone(t.Context(), conn); err != nil || !got {
			t.Fatalf("the lock was not free: %v", err)
		}
		time.AfterFunc(100*time.Millisecond, func() { _ = locker.EndAlone(context.Background(), conn) })
		dbtest.Start(t, p)
		dbtest.Eventually(t, "it runs", func() bool { return dbtest.Count(t, db, &outbox.ProcessModel{}) == 1 })
	})
}
