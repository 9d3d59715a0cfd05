package outbox

import (
	"context"
	"errors"
	"fmt"
	"reflect"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox/internal/dispatch"
	"github.com/gorm-outbox/outbox/internal/store"
)

// Run dispatches until ctx is done, then drains: it starts nothing more, gives running handlers
// Options.ShutdownGrace, then ends their contexts and waits for Options.CancelGrace, and records
// their outcomes. It returns nil after a clean drain, otherwise an error that says what was left;
// such tasks are recorded as interrupted.
//
// One Run at a time per plugin; any number of processes may run on one database. The tables must be
// there (ErrSchema). A database that cannot be reached, at the start or later, is waited for. A
// pool that is closed is not: Run then ends with an error, and what ran is taken for interrupted.
// So close it after Run has returned. When ctx ends before Run has registered its process, Run
// returns nil.
func (p *Plugin) Run(ctx context.Context) error {
	if !p.running.CompareAndSwap(false, true) {
		return errors.New("outbox: run: this plugin is running already")
	}
	defer p.running.Store(false)
	p.commits.Activate() // before the first look: a transaction may be open that commits after it
	defer p.commits.Deactivate()
	cfg, done, err := p.dispatching()
	if err == nil {
		defer done()
		err = dispatch.Run(ctx, cfg)
	}
	if err != nil {
		return fmt.Errorf("outbox: run: %w", err)
	}
	return nil
}

// RunDue runs what is due now, once, and returns how many runs there were. Tasks that become due
// meanwhile, retries included, are left for the next call. It fails when the database does, not
// when a handler does: how tasks ended is in history. When ctx ends, it drains as Run does and
// returns ctx's error.
func (p *Plugin) RunDue(ctx context.Context) (int, error) {
	cfg, done, err := p.dispatching()
	if err != nil {
		return 0, fmt.Errorf("outbox: run due: %w", err)
	}
	defer done()
	n, err := dispatch.RunDue(ctx, cfg)
	if err != nil {
		return n, fmt.Errorf("outbox: run due: %w", err)
	}
	return n, nil
}

// dispatching is what the engine needs of the plugin. No handler can be registered until done.
func (p *Plugin) dispatching() (cfg dispatch.Config, done func(), err error) {
	s, err := p.bound()
	if err != nil {
		return cfg, nil, err
	}
	if err := p.registry.seal(); err != nil {
		return cfg, nil, err
	}
	o := &p.opts
	cfg = dispatch.Config{
		Place: p.placed, Pool: s.Pool, Serial: s.Dialect.Serial(), Functions: p.functions(), Log: p.log,
		Backoff: p.backoff, Model: func(t *store.Task) any { return taskModel(t) },
		Claimed: p.commits.Claimed, Watch: p.commits.Watch, Schedule: p.schedule, Scan: o.Scan, TestClock: o.Clock != nil,
		Concurrency: o.Concurrency, Queues: o.Queues, Heartbeat: o.Heartbeat, HeartbeatLimit: o.HeartbeatLimit,
		SingleProcess: o.SingleProcess, ShutdownGrace: o.ShutdownGrace, CancelGrace: o.CancelGrace,
		RetainSuccess: o.RetainSuccess, RetainErrors: o.RetainErrors, MaxError: o.MaxErrorBytes,
	}
	for _, w := range o.Wakers {
		cfg.Wakers = append(cfg.Wakers, w)
	}
	if len(o.Hooks) > 0 {
		cfg.Observer = hooked{p}
	}
	return cfg, p.registry.unseal, nil
}

// functions are the handlers as the engine calls them, by name, aliases included.
func (p *Plugin) functions() map[string]*dispatch.Function {
	all := map[string]*dispatch.Function{}
	for _, name := range p.registry.names() {
		all[name] = p.function(p.registry.lookup(name))
	}
	return all
}

func (p *Plugin) function(h *handler) *dispatch.Function {
	return &dispatch.Function{
		Transactional: h.tx, Repeatable: h.repeatable(), Isolation: h.level(),
		Bind: h.bind,
		Call: func(ctx context.Context, tx *dispatch.Tx, args reflect.Value) (any, error) {
			if tx == nil {
				return h.call(ctx, nil, args)
			}
			return h.call(ctx, p.handlerDB(ctx, tx), args)
		},
		Encode: func(value any) (*string, error) { return h.encodeResult(value, p.opts.MaxResultBytes) },
	}
}

// handlerDB is the *gorm.DB that a handler gets for its transaction.
func (p *Plugin) handlerDB(ctx context.Context, conn gorm.Tx) *gorm.DB {
	tx := p.gorm.Session(&gorm.Session{NewDB: true, Context: ctx, SkipDefaultTransaction: true})
	tx.Statement.ConnPool = conn
	return tx
}

// hooked tells Options.Hooks of runs.
type hooked struct{ p *Plugin }

func (h hooked) Started(ctx context.Context, model any) context.Context {
	for _, hook := range h.p.opts.Hooks {
		h.p.guardHook("OnStart", func() {
			if next := hook.OnStart(ctx, model.(*TaskModel)); next != nil {
				// It is asked here once, where a panic does no harm.
				_, _, _ = next.Done(), next.Err(), dispatch.ModelFrom(next)
				_, _ = next.Deadline()
				ctx = next
			}
		})
	}
	return ctx
}

func (h hooked) Ended(ctx context.Context, model any, end dispatch.End) {
	ctx = context.WithoutCancel(ctx)
	o := Outcome{Status: Status(end.Status), Reason: Reason(end.Reason), Err: end.Err, Duration: end.Duration, Next: end.Next}
	for _, hook := range h.p.opts.Hooks {
		h.p.guardHook("OnFinish", func() { hook.OnFinish(ctx, model.(*TaskModel), o) })
	}
}
