package guard

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
)

// handler is the application's slog.Handler. A record that it fails on is lost.
type handler struct {
	slog.Handler
	told *sync.Once
}

// Logger is the application's logger, made safe.
func Logger(l *slog.Logger) *slog.Logger {
	return slog.New(handler{l.Handler(), new(sync.Once)})
}

// Enabled is asked for each task, so it has no goroutine of its own: Goexit in it is the one thing
// that gets through.
func (h handler) Enabled(ctx context.Context, level slog.Level) (yes bool) {
	defer func() {
		if v := recover(); v != nil {
			h.tell(&Panicked{PanicText(v)})
		}
	}()
	return h.Handler.Enabled(ctx, level)
}

func (h handler) Handle(ctx context.Context, r slog.Record) (err error) {
	if failed := Call(func() { err = h.Handler.Handle(ctx, r) }); failed != nil {
		h.tell(failed)
		return failed
	}
	return err
}

func (h handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return h.with(func() slog.Handler { return h.Handler.WithAttrs(attrs) })
}

func (h handler) WithGroup(name string) slog.Handler {
	return h.with(func() slog.Handler { return h.Handler.WithGroup(name) })
}

func (h handler) with(derive func() slog.Handler) slog.Handler {
	derived := h
	if failed := Call(func() { derived.Handler = derive() }); failed != nil {
		h.tell(failed)
		return h
	}
	return derived
}

// tell says once, where it can be read, that the log has holes.
func (h handler) tell(failed error) {
	h.told.Do(func() { fmt.Fprintln(os.Stderr, "outbox: Options.Logger failed, records are lost:", failed) })
}
