package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"time"
)

// Code that the application gives us (hooks, wakers, a backoff, marshalers, a logger) is called through what stands here. A
// panic or runtime.Goexit of it, which a test's t.Fatal calls, ends neither the process nor a goroutine of ours.

var errGoexit = errors.New("it called runtime.Goexit")

// panicked is the error that a panic becomes.
type panicked struct{ text string }

func (p *panicked) Error() string { return "panic: " + p.text }

// shield calls code of the application and returns how it failed, if it did not return. The call has its own goroutine,
// because Goexit would end the caller's.
func shield(call func()) (failed error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		failed = errGoexit
		defer func() {
			if v := recover(); v != nil {
				failed = &panicked{panicText(v)}
			}
		}()
		call()
		failed = nil
	}()
	<-done
	return failed
}

// callback is shield that logs.
func (p *Plugin) callback(name string, call func()) (returned bool) {
	err := shield(call)
	if err != nil {
		p.log.Error("outbox: callback did not return", "callback", name, "err", err)
	}
	return err == nil
}

// guardHook is callback for a hook.
func (p *Plugin) guardHook(name string, call func()) {
	var v *panicked
	switch err := shield(call); {
	case errors.As(err, &v):
		p.log.Error("outbox: hook panicked", "hook", name, "panic", v.text)
	case err != nil:
		p.log.Error("outbox: hook called runtime.Goexit", "hook", name)
	}
}

// backoffPatience is how long Options.Backoff may take. A beat or another task's outcome may wait for it.
const backoffPatience = time.Second

// backoff is Options.Backoff. It falls back to the default where that one panics or does not return.
func (p *Plugin) backoff(attempt int) time.Duration {
	if p.opts.Backoff == nil {
		return DefaultBackoff(attempt)
	}
	var pause time.Duration
	answer := make(chan error, 1)
	go func() { answer <- shield(func() { pause = p.opts.Backoff(attempt) }) }()
	timer := time.NewTimer(backoffPatience)
	defer timer.Stop()
	var err error
	select {
	case err = <-answer:
	case <-timer.C:
		err = fmt.Errorf("it has not returned after %v", backoffPatience)
	}
	if err == nil {
		return pause
	}
	p.badBackoff.Do(func() {
		p.log.Error("outbox: Options.Backoff failed, DefaultBackoff is used instead; this is logged once", "attempt", attempt, "err", err)
	})
	return DefaultBackoff(attempt)
}

// guardClock keeps a test's clock from doing harm. Where it fails the time is the process's own.
func (p *Plugin) guardClock(clock func() time.Time) func() time.Time {
	if clock == nil {
		return nil
	}
	return func() time.Time {
		var now time.Time
		if !p.callback("Options.Clock", func() { now = clock() }) {
			return time.Now()
		}
		return now
	}
}

// guardedHandler is the application's slog.Handler. It must not take the goroutine that logs with it; a record that it
// fails on is lost.
type guardedHandler struct {
	slog.Handler
	told *sync.Once
}

func guardedLogger(l *slog.Logger) *slog.Logger {
	return slog.New(guardedHandler{l.Handler(), new(sync.Once)})
}

// Enabled is asked for each task, so it has no goroutine of its own: Goexit in it is the one thing that gets through.
func (h guardedHandler) Enabled(ctx context.Context, level slog.Level) (yes bool) {
	defer func() {
		if v := recover(); v != nil {
			h.tell(&panicked{panicText(v)})
		}
	}()
	return h.Handler.Enabled(ctx, level)
}

func (h guardedHandler) Handle(ctx context.Context, r slog.Record) (err error) {
	if failed := shield(func() { err = h.Handler.Handle(ctx, r) }); failed != nil {
		h.tell(failed)
		return failed
	}
	return err
}

func (h guardedHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return h.with(func() slog.Handler { return h.Handler.WithAttrs(attrs) })
}

func (h guardedHandler) WithGroup(name string) slog.Handler {
	return h.with(func() slog.Handler { return h.Handler.WithGroup(name) })
}

func (h guardedHandler) with(derive func() slog.Handler) slog.Handler {
	derived := h
	if failed := shield(func() { derived.Handler = derive() }); failed != nil {
		h.tell(failed)
		return h
	}
	return derived
}

// tell says once where it can be read that the log has holes.
func (h guardedHandler) tell(failed error) {
	h.told.Do(func() { fmt.Fprintln(os.Stderr, "outbox: Options.Logger failed, records are lost:", failed) })
}

// caught turns a panic, of a driver or of what wraps one, into an error of the statement. It is deferred.
func caught(err *error) {
	if v := recover(); v != nil {
		*err = fmt.Errorf("the database driver panicked: %s", panicText(v))
	}
}

func panicText(v any) (text string) {
	defer func() {
		if recover() != nil {
			text = fmt.Sprintf("a %T whose text panics", v)
		}
	}()
	if _, ok := v.(*runtime.PanicNilError); ok {
		return "nil"
	}
	if err, ok := v.(error); ok {
		return err.Error()
	}
	return fmt.Sprint(v)
}
