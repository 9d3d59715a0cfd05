package outbox_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
	"github.com/gorm-outbox/outbox/internal/dialect"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

// It may be this process itself that has the lock: while it takes over the tasks of another.
func TestHeartbeatAfterASlowRescue(t *testing.T) {
	db := testdb.SQLite(t)
	running, release, taking := make(chan context.Context, 1), make(chan struct{}), make(chan struct{})
	opts := dbtest.ShortHeartbeats()
	opts.Heartbeat, opts.HeartbeatLimit = 50*time.Millisecond, 300*time.Millisecond
	p := dbtest.Install(t, db, opts, func(p *outbox.Plugin) {
		p.Handle("held", func(ctx context.Context) error {
			running <- ctx
			<-release
			return ctx.Err()
		})
	})
	var once sync.Once
	p.Intercept(func(d dialect.Dialect) dialect.Dialect {
		return between{d, func() {
			once.Do(func() {
				close(taking)
				<-time.After(700 * time.Millisecond) // the limit is over twice; a statement's is a second
			})
		}}
	})
	id := dbtest.Create(t, db, "held", nil).ID
	dbtest.Start(t, p)
	ctx := dbtest.Receive(t, running)
	dead := "dead"
	if err := db.Create(&outbox.TaskModel{ID: "task", Func: "held", Args: outbox.JSON("{}"), Queue: "default", Priority: 2, RunAt: time.Now(),
		State: outbox.StateRunning, Attempt: 1, MaxAttempts: 1, Version: 2, CreatedAt: time.Now(), ProcessID: &dead}).Error; err != nil {
		t.Fatal(err)
	}
	dbtest.Receive(t, taking)
	if past := dbtest.Ended(t, db, "task"); past.Reason != outbox.ReasonInterrupted {
		t.Errorf("%+v", past)
	}
	if ctx.Err() != nil {
		t.Errorf("the handler's context ended during the take-over: %v", context.Cause(ctx))
	}
	close(release)
	if h := dbtest.Ended(t, db, id); h.Status != outbox.StatusSuccess || h.Attempt != 1 {
		t.Errorf("%+v", h)
	}
}
