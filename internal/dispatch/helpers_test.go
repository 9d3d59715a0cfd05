package dispatch

import (
	"context"
	"database/sql"
	"iter"
	"log/slog"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/gorm-outbox/outbox/internal/dialect"
	"github.com/gorm-outbox/outbox/internal/store"
)

// config is a Config of a store, with the API's defaults and without functions.
func config(s *store.Store) *Config {
	return &Config{
		Place: func(context.Context) (*store.Store, error) { return s, nil }, Pool: s.Pool, Serial: s.Dialect.Serial(),
		Functions: map[string]*Function{}, Log: slog.New(slog.DiscardHandler), Backoff: DefaultBackoff,
		Model:   func(t *store.Task) any { return t },
		Claimed: func(iter.Seq[string]) {}, Watch: func(ctx context.Context, _ func([]dialect.Partition)) { <-ctx.Done() },
		Schedule: every(time.Second), Concurrency: 10, Heartbeat: 10 * time.Second, HeartbeatLimit: 30 * time.Second,
		ShutdownGrace: 10 * time.Second, CancelGrace: 5 * time.Second, RetainSuccess: -1, RetainErrors: -1, MaxError: 64 << 10,
	}
}

// memoryConfig is config of a database in memory that no statement reaches.
func memoryConfig(serial bool) *Config {
	return config(store.With(nil, memDialect{m: newMemory(serial), gone: new(sync.Map)}))
}

// start is a dispatcher that has not begun.
func (cfg *Config) start(t testing.TB) *dispatcher {
	t.Helper()
	s, err := cfg.Place(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	o := &outages{log: cfg.Log, pool: s.Pool}
	var poolClosed context.Context
	poolClosed, o.closed = context.WithCancel(context.Background())
	d := newDispatcher(t.Context(), *cfg, s, o, poolClosed)
	t.Cleanup(func() { d.lease.stop(); d.poller.nextDue.Stop(); d.stopWriting() })
	return d
}

func ordinary(f func(context.Context) error) *Function {
	return &Function{Isolation: sql.LevelDefault, Bind: noArgs, Encode: noResult,
		Call: func(ctx context.Context, _ *Tx, _ reflect.Value) (any, error) { return nil, f(ctx) }}
}

func inTransaction(f func(context.Context, *Tx) error) *Function {
	return &Function{Transactional: true, Repeatable: true, Isolation: sql.LevelDefault, Bind: noArgs, Encode: noResult,
		Call: func(ctx context.Context, tx *Tx, _ reflect.Value) (any, error) { return nil, f(ctx, tx) }}
}

func noArgs(string) (v reflect.Value, err error) { return v, nil }
func noResult(any) (*string, error)              { return nil, nil }

// every is a schedule.
type every time.Duration

func (e every) Next(t time.Time) time.Time { return t.Add(time.Duration(e)) }

// endFunc is an Observer of ends.
type endFunc func(*store.Task, End)

func (endFunc) Started(context.Context, any) context.Context  { return nil }
func (f endFunc) Ended(_ context.Context, model any, end End) { f(model.(*store.Task), end) }

func taskFrom(ctx context.Context) *store.Task { return ModelFrom(ctx).(*store.Task) }
