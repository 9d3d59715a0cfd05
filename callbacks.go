package outbox

import (
	"errors"
	"fmt"
	"time"

	"github.com/gorm-outbox/outbox/internal/guard"
)

// callback is guard.Call that logs.
func (p *Plugin) callback(name string, call func()) (returned bool) {
	err := guard.Call(call)
	if err != nil {
		p.log.Error("outbox: callback did not return", "callback", name, "err", err)
	}
	return err == nil
}

// guardHook is callback for a hook.
func (p *Plugin) guardHook(name string, call func()) {
	var v *guard.Panicked
	switch err := guard.Call(call); {
	case errors.As(err, &v):
		p.log.Error("outbox: hook panicked", "hook", name, "panic", v.Text)
	case err != nil:
		p.log.Error("outbox: hook called runtime.Goexit", "hook", name)
	}
}

// backoffPatience is how long Options.Backoff may take. A beat or another task's outcome may wait
// for it.
const backoffPatience = time.Second

// backoff is Options.Backoff. It falls back to the default where that one panics or does not
// return.
func (p *Plugin) backoff(attempt int) time.Duration {
	if p.opts.Backoff == nil {
		return DefaultBackoff(attempt)
	}
	var pause time.Duration
	answer := make(chan error, 1)
	go func() { answer <- guard.Call(func() { pause = p.opts.Backoff(attempt) }) }()
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
