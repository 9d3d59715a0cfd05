package pgnotify

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/gorm-outbox/outbox/testutil/testdb"
)

// line is a connection that can be cut without either end being told.
type line struct {
	net.Conn
	cut    *atomic.Bool
	writes *atomic.Int32
}

func (l line) Write(b []byte) (int, error) {
	l.writes.Add(1)
	if l.cut.Load() {
		return len(b), nil
	}
	return l.Conn.Write(b)
}

func TestSilentConnection(t *testing.T) {
	config, err := pgx.ParseConfig(testdb.PostgresDSN(t))
	if err != nil {
		t.Fatal(err)
	}
	direct := stdlib.OpenDB(*config)
	defer direct.Close()
	var cut atomic.Bool
	var writes atomic.Int32
	dial := config.DialFunc
	config.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dial(ctx, network, addr)
		return line{c, &cut, &writes}, err
	}
	pool := stdlib.OpenDB(*config)
	defer pool.Close()

	w := New(Options{Channel: t.Name()})
	w.alive, w.limit = 10*time.Millisecond, 5*time.Second
	woken, done := make(chan struct{}, 10), make(chan error, 1)
	go func() { done <- w.Listen(t.Context(), pool, func() { woken <- struct{}{} }) }()
	wait := func() {
		t.Helper()
		select {
		case <-woken:
		case err := <-done:
			t.Fatal(err)
		case <-time.After(30 * time.Second):
			t.Fatal("not woken within 30 s")
		}
	}
	wait()

	// A server that answers is kept.
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	limit := time.After(30 * time.Second)
	for begun := writes.Load(); writes.Load() < begun+5; {
		select {
		case <-tick.C:
		case err := <-done:
			t.Fatal(err)
		case <-limit:
			t.Fatal("the silent connection was not asked within 30 s")
		}
	}
	if err := w.Created(t.Context(), direct, direct); err != nil {
		t.Fatal(err)
	}
	wait()

	// One that does not is given up.
	cut.Store(true)
	select {
	case err := <-done:
		if err == nil {
			t.Error("Listen ended without an error")
		}
	case <-time.After(30 * time.Second):
		t.Fatal("Listen did not notice within 30 s")
	}
	if n := pool.Stats().OpenConnections; n != 0 {
		t.Errorf("%d connections open: the dead one was not dropped", n)
	}
}
