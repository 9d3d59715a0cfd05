package pgnotify_test

import (
	"context"
	"crypto/rand"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"gorm.io/driver/postgres"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
	"github.com/gorm-outbox/outbox/pgnotify"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

const path = "test.note"

type note struct {
	N int `json:"n"`
}

// pair is two processes on one database: what matters is that they share nothing else.
type pair struct {
	dsn, channel string
	producer     *gorm.DB // creates only
	consumer     *gorm.DB // dispatches, and scans when it starts and never again
	plugin       *outbox.Plugin
	ran          chan int
}

func newPair(t *testing.T, opts pgnotify.Options) *pair {
	t.Helper()
	// Tests share the database, in which channels are common to all schemas.
	opts.Channel = "test " + rand.Text()
	p := &pair{dsn: testdb.PostgresDSN(t), channel: opts.Channel, ran: make(chan int, 10_000)}
	p.producer, p.consumer = open(t, p.dsn), open(t, p.dsn)
	use := func(db *gorm.DB, o outbox.Options) *outbox.Plugin {
		o.Logger = slog.New(slog.DiscardHandler)
		o.Wakers = []outbox.Waker{pgnotify.New(opts)}
		plugin := outbox.New(o)
		if err := db.Use(plugin); err != nil {
			t.Fatal(err)
		}
		return plugin
	}
	use(p.producer, outbox.Options{ProducerOnly: true})
	p.plugin = use(p.consumer, outbox.Options{Scan: "@every 1h", Concurrency: 4})
	p.plugin.Handle(path, func(_ context.Context, n note) error {
		p.ran <- n.N
		return nil
	})
	if err := p.plugin.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return p
}

func open(t *testing.T, dsn string) *gorm.DB {
	t.Helper()
	db, err := gorm.Open(postgres.Open(dsn), &gorm.Config{Logger: logger.Discard})
	if err != nil {
		t.Fatal(err)
	}
	pool, err := db.DB()
	if err != nil {
		t.Fatal(err)
	}
	pool.SetMaxOpenConns(20)
	pool.SetMaxIdleConns(20)
	t.Cleanup(func() { pool.Close() })
	return db
}

// start dispatches until the test ends or stop is called, and returns when somebody listens and the
// first scan is over: from then on only notifications can start a task.
func (p *pair) start(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.plugin.Run(ctx) }()
	var stopped atomic.Bool
	stop = func() {
		if stopped.Swap(true) {
			return
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
	t.Cleanup(stop)
	p.listener(t)
	// Its wake-up, and the scan, may come before this task is committed or after; it has to run
	// either way.
	p.create(t, p.producer, -1)
	p.expect(t, -1)
	return stop
}

// listener waits until the consumer listens and returns its backend.
func (p *pair) listener(t *testing.T) (pid int) {
	t.Helper()
	dbtest.Eventually(t, "somebody listens", func() bool {
		var pids []int
		query := "SELECT pid FROM pg_stat_activity WHERE query = 'LISTEN \"' || ? || '\"' AND state = 'idle'"
		if err := p.producer.Raw(query, p.channel).Scan(&pids).Error; err != nil {
			t.Fatal(err)
		}
		if len(pids) > 0 {
			pid = pids[0]
		}
		return len(pids) == 1
	})
	return pid
}

func (p *pair) create(t *testing.T, tx *gorm.DB, n int) {
	t.Helper()
	if _, err := outbox.Create(tx, path, note{n}); err != nil {
		t.Fatal(err)
	}
}

func (p *pair) expect(t *testing.T, n int) {
	t.Helper()
	select {
	case got := <-p.ran:
		if got != n {
			t.Fatalf("task %d ran, not %d", got, n)
		}
	case <-time.After(30 * time.Second):
		t.Fatalf("task %d did not run within 30 s", n)
	}
}

// count counts notifications with a connection of its own. heard waits until the reminders that are
// under way have come: until two seconds have brought nothing.
func (p *pair) count(t *testing.T) (n *atomic.Int32, heard func(*testing.T)) {
	t.Helper()
	c, err := pgx.Connect(t.Context(), p.dsn)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Exec(t.Context(), "LISTEN "+pgx.Identifier{p.channel}.Sanitize()); err != nil {
		t.Fatal(err)
	}
	n = new(atomic.Int32)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	last := make(chan struct{}, 1)
	go func() {
		defer close(done)
		defer c.Close(context.Background())
		for {
			if _, err := c.WaitForNotification(ctx); err != nil {
				return
			}
			n.Add(1)
			select {
			case last <- struct{}{}:
			default:
			}
		}
	}()
	stop := func() { cancel(); <-done }
	t.Cleanup(stop)
	return n, func(t *testing.T) {
		t.Helper()
		for {
			select {
			case <-last:
				continue
			case <-time.After(2 * time.Second):
			}
			stop()
			return
		}
	}
}
