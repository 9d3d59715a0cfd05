package outbox_test

import (
	"context"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// A statement is given a second, and what it waits for is this process itself.

func TestStarvedPoolIsNamed(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		var said logBuffer
		opts := dbtest.ShortHeartbeats()
		opts.Logger = said.logger()
		p := dbtest.Install(t, db, opts, nil)
		pool, err := db.DB()
		if err != nil {
			t.Fatal(err)
		}
		pool.SetMaxOpenConns(1)
		dbtest.Start(t, p)
		dbtest.Eventually(t, "it runs", func() bool { return said.lines("outbox: started") > 0 })
		before := said.lines("database error") // on a busy machine a step of the start may take too long
		held, err := pool.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer held.Close()
		dbtest.Eventually(t, "the heartbeat fails", func() bool { return said.lines("step=heartbeat") > 0 })
		dbtest.Eventually(t, "the claim fails", func() bool { return said.lines("step=claim") > 0 })
		if said.lines("every connection of the pool is in use", "in_use=1") < 2 || said.lines("database error") > before {
			t.Errorf("logged:\n%s", said.String())
		}
	})
}

func TestTransactionalHandlerThatKeepsTheWriteLockIsNamed(t *testing.T) {
	db := testdb.SQLite(t)
	var said logBuffer
	opts := dbtest.ShortHeartbeats()
	opts.Logger = said.logger()
	running, release := make(chan struct{}), make(chan struct{})
	p := dbtest.Install(t, db, opts, func(p *outbox.Plugin) {
		p.Handle("slow", func(ctx context.Context, tx *gorm.DB) error {
			close(running)
			<-release
			return nil
		})
		p.Handle("plain", func(context.Context) error { return nil })
	})
	id := dbtest.Create(t, db, "slow", nil).ID
	dbtest.Start(t, p)
	dbtest.Receive(t, running)
	time.AfterFunc(30*time.Second, func() {
		select {
		case <-release:
		default:
			t.Error("nothing was logged within 30 s")
			close(release)
		}
	})
	dbtest.Eventually(t, "the heartbeat says what it waits for", func() bool { return said.lines("a transactional handler of this process", "step=heartbeat") > 0 })
	close(release)
	dbtest.Ended(t, db, id)
	dbtest.Eventually(t, "it beats again", func() bool { return said.lines("recovered", "step=heartbeat") > 0 })
	if said.lines("database error") > 0 {
		t.Errorf("logged:\n%s", said.String())
	}
}

func TestQueueThatNobodyServesIsReportedOnce(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		var said logBuffer
		opts := dbtest.ShortHeartbeats()
		opts.Logger, opts.Queues, opts.HeartbeatLimit = said.logger(), []string{"mail"}, 30*time.Second
		p := dbtest.Install(t, db, opts, func(p *outbox.Plugin) { p.Handle("quick", func(context.Context) error { return nil }) })
		_, err := p.RunDue(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		beats := func(more int64) {
			var m outbox.ProcessModel
			var first int64 = -1
			dbtest.Eventually(t, "it beats", func() bool {
				if err := db.First(&m, "queues IS NOT NULL").Error; err != nil {
					return false
				}
				if first < 0 {
					first = m.Beats
				}
				return m.Beats >= first+more
			})
		}
		other := outbox.ProcessModel{ID: "other", Functions: outbox.JSON("[]"), StartedAt: time.Now().UTC(), BeatAt: time.Now().UTC(), Beats: 1}
		if err := db.Create(&other).Error; err != nil { // which serves every queue
			t.Fatal(err)
		}
		dbtest.Create(t, db, "quick", nil, outbox.Queue("reports"))
		dbtest.Create(t, db, "quick", nil, outbox.Queue("later"), outbox.StartAfter(time.Hour))
		dbtest.Start(t, p)
		beats(5)
		if said.lines("no live process serves") > 0 {
			t.Errorf("a process serves it, but:\n%s", said.String())
		}
		if err := db.Delete(&other).Error; err != nil {
			t.Fatal(err)
		}
		dbtest.Eventually(t, "it is reported", func() bool { return said.lines("no live process serves", "queue=reports") > 0 })
		beats(5)
		if n := said.lines("no live process serves"); n != 1 {
			t.Errorf("reported %d times:\n%s", n, said.String())
		}
	})
}
