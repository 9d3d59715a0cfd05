package outbox_test

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
)

// unanswered is a transaction whose server does not answer a rollback to a savepoint.
type unanswered struct {
	gorm.ConnPool
	cancel func()
}

func (u unanswered) ExecContext(ctx context.Context, query string, params ...any) (sql.Result, error) {
	if strings.HasPrefix(query, "ROLLBACK TO") {
		u.cancel()
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return u.ConnPool.ExecContext(ctx, query, params...)
}

// The caller's context ends while a creation that was refused is undone in the caller's
// transaction.
func TestRollbackToTheSavepointEndsWithItsContext(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		dbtest.Install(t, db, outbox.Options{ProducerOnly: true}, nil)
		dbtest.Create(t, db, "a", nil, outbox.Key("held"))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		tx := db.Begin()
		defer tx.Rollback()
		own := tx.WithContext(ctx)
		own.Statement.ConnPool = unanswered{tx.Statement.ConnPool, cancel}
		done := make(chan error, 1)
		go func() {
			held := []outbox.CreateOption{outbox.Key("held")}
			_, err := outbox.CreateBatch(own, outbox.NewTask{Func: "a"}, outbox.NewTask{Func: "a", Options: held})
			done <- err
		}()
		select {
		case err := <-done:
			if !errors.Is(err, outbox.ErrDuplicateKey) || !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		case <-time.After(30 * time.Second):
			t.Fatal("it stays")
		}
	})
}
