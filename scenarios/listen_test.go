package scenarios_test

import (
	"context"
	"database/sql"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
	"github.com/gorm-outbox/outbox/pgnotify"
)

// heard tells when a Waker listens.
type heard struct {
	outbox.Waker
	listens chan<- struct{}
}

func (h heard) Listen(ctx context.Context, pool *sql.DB, wake func()) error {
	return h.Waker.Listen(ctx, pool, func() { h.listens <- struct{}{}; wake() })
}

// A Waker returns soon after its context ends, whatever it waits for: a connection, the reply to
// LISTEN or UNLISTEN, a notification; and so does a Run that has one.
func TestListenReturnsSoonAfterItsContext(t *testing.T) {
	on(t, "postgres", func(t *testing.T, d database, _ string) {
		for name, begin := range map[string]func(*testing.T, *proxy, ...*sql.DB){
			"a silent server": func(_ *testing.T, p *proxy, _ ...*sql.DB) { p.silence() },
			"no free connection": func(t *testing.T, _ *proxy, pools ...*sql.DB) {
				for _, pool := range pools {
					pool.SetMaxOpenConns(2 + pool.Stats().InUse) // with one, Listen refuses
					for range 2 {
						conn, err := pool.Conn(t.Context())
						if err != nil {
							t.Fatal(err)
						}
						t.Cleanup(func() { _ = conn.Close() })
					}
				}
			},
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				proxy, through := startProxy(t, d, d.dsn(t))
				idle, busy := d.open(t, through, nil), d.open(t, through, nil)
				own := pgnotify.Options{Connect: func(ctx context.Context) (*pgx.Conn, error) { return pgx.Connect(ctx, through) }}
				listens := make(chan struct{}, 100)
				listen := func(o pgnotify.Options, pool *sql.DB) func(context.Context) error {
					return func(ctx context.Context) error {
						return heard{pgnotify.New(o), listens}.Listen(ctx, pool, func() {})
					}
				}
				runs := d.open(t, through, nil)
				p := dbtest.Install(t, runs, quick(func(o *outbox.Options) {
					o.Heartbeat, o.HeartbeatLimit, o.Wakers = 0, 0, []outbox.Waker{heard{pgnotify.New(pgnotify.Options{}), listens}}
				}), nil)

				calls := map[string]func(context.Context) error{}
				for name, call := range map[string]func(context.Context) error{ // these listen when the stall begins
					"Listen, which waits for a notification":                       listen(pgnotify.Options{}, pool(t, busy)),
					"Listen on its own connection, which waits for a notification": listen(own, pool(t, busy)),
					"Run with a Waker": p.Run,
				} {
					ctx, cancel := context.WithCancel(context.Background())
					t.Cleanup(cancel)
					ended := make(chan error, 1)
					go func() { ended <- call(ctx) }()
					dbtest.Receive(t, listens)
					calls[name] = func(ctx context.Context) error {
						<-ctx.Done()
						cancel()
						return <-ended
					}
				}
				if err := pool(t, idle).PingContext(t.Context()); err != nil { // so that it has a connection
					t.Fatal(err)
				}
				begin(t, proxy, pool(t, idle), pool(t, busy), pool(t, runs))
				calls["Listen"] = listen(pgnotify.Options{}, pool(t, idle))
				if name == "a silent server" {
					calls["Listen on its own connection"] = listen(own, pool(t, idle))
				}
				returnSoon(t, calls)
			})
		}
	})
}

// The server falls silent at the notification of a task that has been created.
func TestCreateThatNotifiesReturnsSoonAfterItsContext(t *testing.T) {
	on(t, "postgres", func(t *testing.T, d database, dsn string) {
		proxy, through := startProxy(t, d, dsn)
		db := d.open(t, through, nil)
		dbtest.Install(t, db, quick(func(o *outbox.Options) {
			o.ProducerOnly, o.Wakers = true, []outbox.Waker{pgnotify.New(pgnotify.Options{})}
		}), nil)
		notifies := proxy.once(hole, "pg_notify")
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		over := make(chan error, 1)
		go func() { _, err := outbox.Create(db.WithContext(ctx), "ordinary", nil); over <- err }()
		dbtest.Receive(t, notifies)
		cancel()
		select {
		case err := <-over:
			t.Log(err)
		case <-time.After(soon):
			t.Errorf("it has not returned %v after its context", soon)
		}
	})
}
