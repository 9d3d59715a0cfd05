package pgnotify_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
	"github.com/gorm-outbox/outbox/pgnotify"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

// wrapping is a connector whose connections are wrapped, as by a package that traces.
type wrapping struct {
	driver.Connector
	wrap func(driver.Conn) driver.Conn
}

func (w wrapping) Connect(ctx context.Context) (driver.Conn, error) {
	c, err := w.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return w.wrap(c), nil
}

// hiding shows nothing of what it wraps.
type hiding struct{ parent driver.Conn }

func (h hiding) Prepare(query string) (driver.Stmt, error) { return h.parent.Prepare(query) }
func (h hiding) Close() error                              { return h.parent.Close() }

//lint:ignore SA1019 every driver.Conn has it
func (h hiding) Begin() (driver.Tx, error) { return h.parent.Begin() }

type withRaw struct{ hiding }

func (w withRaw) Raw() driver.Conn { return w.parent }

type withWrappedConn struct{ hiding }

func (w *withWrappedConn) WrappedConn() driver.Conn { return w.parent }

type withUnwrap struct{ hiding }

func (w withUnwrap) Unwrap() driver.Conn { return w.parent }

type withField struct {
	hiding
	Conn driver.Conn
}

type embedding struct{ driver.Conn }

type embeddingTwice struct{ *embedding }

func wrappedPool(t *testing.T, wrap func(driver.Conn) driver.Conn) (pool *sql.DB, dsn string) {
	t.Helper()
	dsn = testdb.PostgresDSN(t)
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	pool = sql.OpenDB(wrapping{stdlib.GetConnector(*config), wrap})
	t.Cleanup(func() { pool.Close() })
	return pool, dsn
}

// hears fails the test unless a Waker listens on the pool and is woken by another's notification.
func hears(t *testing.T, w *pgnotify.Waker, pool *sql.DB) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	woken, done := make(chan struct{}, 10), make(chan error, 1)
	go func() { done <- w.Listen(ctx, pool, func() { woken <- struct{}{} }) }()
	for i := range 2 {
		select {
		case <-woken:
		case err := <-done:
			cancel()
			t.Fatal(err)
		case <-time.After(30 * time.Second):
			cancel()
			t.Fatal("not woken within 30 s")
		}
		if i == 0 {
			if err := w.Created(t.Context(), pool, pool); err != nil {
				t.Error(err)
			}
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestListensThroughWrappers(t *testing.T) {
	for name, wrap := range map[string]func(driver.Conn) driver.Conn{
		"a method Raw":         func(c driver.Conn) driver.Conn { return withRaw{hiding{c}} },
		"a method WrappedConn": func(c driver.Conn) driver.Conn { return &withWrappedConn{hiding{c}} },
		"a method Unwrap":      func(c driver.Conn) driver.Conn { return withUnwrap{hiding{c}} },
		"a field Conn":         func(c driver.Conn) driver.Conn { return &withField{hiding{c}, c} },
		"an embedded Conn":     func(c driver.Conn) driver.Conn { return &embedding{c} },
		"two of them":          func(c driver.Conn) driver.Conn { return embeddingTwice{&embedding{withRaw{hiding{c}}}} },
	} {
		t.Run(name, func(t *testing.T) {
			pool, _ := wrappedPool(t, wrap)
			hears(t, pgnotify.New(pgnotify.Options{Channel: t.Name()}), pool)
		})
	}
}

func TestWrapperThatHides(t *testing.T) {
	pool, dsn := wrappedPool(t, func(c driver.Conn) driver.Conn { return hiding{c} })
	err := pgnotify.New(pgnotify.Options{}).Listen(t.Context(), pool, func() { t.Error("woken") })
	if !errors.Is(err, pgnotify.ErrDriver) || !strings.Contains(err.Error(), "pgnotify_test.hiding") || !strings.Contains(err.Error(), "Options.Connect") {
		t.Errorf("got %v, want ErrDriver with the driver's type and what to do", err)
	}
	if n := pool.Stats().InUse; n != 0 {
		t.Errorf("%d connections in use", n)
	}
	connect := func(ctx context.Context) (*pgx.Conn, error) { return pgx.Connect(ctx, dsn) }
	hears(t, pgnotify.New(pgnotify.Options{Channel: t.Name(), Connect: connect}), pool)
}

// ownRaw claims to wrap itself.
type ownRaw struct{ hiding }

func (o ownRaw) Raw() driver.Conn { return o }

func TestWrapperOfItself(t *testing.T) {
	pool, _ := wrappedPool(t, func(c driver.Conn) driver.Conn { return ownRaw{hiding{c}} })
	if err := pgnotify.New(pgnotify.Options{}).Listen(t.Context(), pool, func() { t.Error("woken") }); !errors.Is(err, pgnotify.ErrDriver) {
		t.Errorf("got %v, want ErrDriver", err)
	}
}

// A listener would take a pool's only connection, and nothing would ever be claimed.
func TestPoolOfOne(t *testing.T) {
	db := testdb.Postgres(t)
	pool, err := db.DB()
	if err != nil {
		t.Fatal(err)
	}
	pool.SetMaxOpenConns(1)
	waker := pgnotify.New(pgnotify.Options{Channel: t.Name()})
	if err := waker.Listen(t.Context(), pool, func() { t.Error("woken") }); !errors.Is(err, pgnotify.ErrPool) {
		t.Errorf("got %v, want ErrPool", err)
	}
	var said text
	p := outbox.New(outbox.Options{Logger: slog.New(slog.NewTextHandler(&said, nil)), Wakers: []outbox.Waker{waker}, Scan: "@every 50ms"})
	ran := make(chan int, 10)
	p.Handle(path, func(_ context.Context, n note) error { ran <- n.N; return nil })
	if err := db.Use(p); err != nil {
		t.Fatal(err)
	}
	if err := p.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	if _, err := outbox.Create(db, path, note{7}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ran:
	case <-time.After(30 * time.Second):
		t.Error("nothing ran within 30 s")
	}
	dbtest.Eventually(t, "it is said", func() bool { return strings.Contains(said.String(), "raise MaxOpenConns") })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if n := strings.Count(said.String(), "a Waker cannot listen"); n != 1 || strings.Contains(said.String(), "database error") {
		t.Errorf("said %d times:\n%s", n, said.String())
	}
}

// text is a log that can be read while others write.
type text struct {
	mu sync.Mutex
	b  strings.Builder
}

func (t *text) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.b.Write(b)
}

func (t *text) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.b.String()
}
