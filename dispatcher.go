package outbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorm-outbox/outbox/internal/dialect"
)

// dispatcher is one Run or RunDue: a loop over the slots, the lease, the claimer, the completer and
// recovery, each of which has its own lock.
type dispatcher struct {
	p     *Plugin
	store *store
	log   *slog.Logger

	slots     *slots
	lease     *lease
	claimer   *claimer
	completer *completer
	recovery  *recovery
	wakeups   *wakeups
	outages   outages
	workers   workers
	single    single // of begin, the heartbeats, and the end

	txTurn   chan struct{} // on a serial database: whose turn it is to write
	renewed  atomic.Int64  // when renew was called, in nanoseconds
	beating  atomic.Bool   // a heartbeat, or what follows it, waits for the database
	draining atomic.Bool   // nothing more is to be started
	drain    chan struct{} // closed when runs that wait for their turn are to give it up, and idle workers to end
	ran      atomic.Int64
	misfits  sync.Map // functions whose tasks went back for another process, which was logged

	writeCtx    context.Context // of what must be written after a cancellation
	stopWriting context.CancelFunc
	poolClosed  context.Context // has ended when the application has closed the pool

	poller   poller             // of the loop
	seen     map[string]bool    // RunDue: ids that have run
	held     []dialect.Requeued // RunDue: those of them that were claimed again
	unserved map[string]bool    // functions that were reported as parked
	deserted map[string]int     // queues that no live process serves: in how many looks they were seen
	untaken  map[string]bool    // of the heartbeats: orphans that the database refuses to change, which was logged
}

func (p *Plugin) newDispatcher(s *store) *dispatcher {
	d := &dispatcher{
		p: p, store: s, log: p.log, slots: newSlots(p.opts.Concurrency), wakeups: newWakeups(),
		drain: make(chan struct{}), workers: workers{idle: make(chan struct{})}, unserved: map[string]bool{}, deserted: map[string]int{},
	}
	d.writeCtx, d.stopWriting = context.WithCancel(context.Background())
	d.poolClosed, d.outages.closed = context.WithCancel(context.Background())
	context.AfterFunc(d.poolClosed, func() {
		d.stopWriting()
		d.endRuns()
	})
	d.outages.log, d.outages.pool = p.log, s.pool
	d.outages.renew = d.renew
	d.outages.locked = func() bool { return s.d.Serial() && d.slots.inTransaction() }
	d.lease = newLease(p.opts.HeartbeatLimit*2/3, d.leaseExpired)
	d.recovery = &recovery{store: s, lease: d.lease, slots: d.slots, outages: &d.outages, wakeups: d.wakeups, log: p.log,
		backoff: p.backoff, limit: d.statementLimit(), doubt: p.opts.HeartbeatLimit, outcomeless: map[string]int{}}
	d.claimer = d.newClaimer()
	d.completer = d.newCompleter()
	d.poller = newPoller()
	if s.d.Serial() {
		d.txTurn = make(chan struct{}, 1)
	}
	return d
}

func (d *dispatcher) newClaimer() *claimer {
	r := &d.p.registry
	c := &claimer{store: d.store, lease: d.lease, slots: d.slots, recovery: d.recovery, limit: d.statementLimit(), start: d.start,
		funcs:      r.paths(func(*handler) bool { return true }),
		txFuncs:    r.paths(func(h *handler) bool { return h.tx }),
		plainFuncs: r.paths(func(h *handler) bool { return !h.tx }),
		repeatable: r.paths((*handler).repeatable),
	}
	c.txApart = d.store.d.Serial() && len(c.txFuncs) > 0
	c.cursors.firsts = d.store.d.Serial()
	c.cursors.unused, c.txCursors.unused = c.txApart && len(c.plainFuncs) == 0, !c.txApart
	return c
}

func (d *dispatcher) newCompleter() *completer {
	small := cmp.Or(d.p.smallGroup, minGroup)
	writers := 1
	if !d.store.d.Serial() && d.slots.total > small {
		writers = 2
	}
	return &completer{store: d.store, lease: d.lease, slots: d.slots, claimer: d.claimer, recovery: d.recovery, outages: &d.outages,
		wakeups: d.wakeups, log: d.log, limit: d.statementLimit(), ctx: d.writeCtx,
		writers: writers, full: min(max(d.slots.total/writers, small), maxRows), signal: make(chan struct{}, 1)}
}

// statementLimit bounds one statement of the dispatcher: a connection that is half open must not stop it for ever.
func (d *dispatcher) statementLimit() time.Duration {
	return max(d.p.opts.HeartbeatLimit/3, time.Second)
}

// Run dispatches until ctx is done, then drains: it starts nothing more, gives running handlers Options.ShutdownGrace,
// then ends their contexts and waits for Options.CancelGrace, and records their outcomes. It returns nil after a clean
// drain, otherwise an error that says what was left; such tasks are recorded as interrupted.
//
// One Run at a time per plugin; any number of processes may run on one database. The tables must be there (ErrSchema).
// A database that cannot be reached, at the start or later, is waited for.
// A pool that is closed is not: Run then ends with an error, and what ran is taken for interrupted. So close it after Run has
// returned. When ctx has ended before Run begins, it returns nil.
func (p *Plugin) Run(ctx context.Context) error {
	if !p.running.CompareAndSwap(false, true) {
		return errors.New("outbox: run: this plugin is running already")
	}
	defer p.running.Store(false)
	p.commits.Activate() // before the first look: a transaction may be open that commits after it
	defer p.commits.Deactivate()
	d, stop, err := p.begin(ctx, true)
	if err != nil {
		if ctx.Err() != nil {
			p.log.Info("outbox: not started, because Run's context has ended", "cause", context.Cause(ctx))
			return nil
		}
		return fmt.Errorf("outbox: run: %w", err)
	}
	ctx, end := context.WithCancel(ctx)
	defer end()
	defer context.AfterFunc(d.poolClosed, end)()
	d.checkPool()
	d.log.Info("outbox: started", "process", d.lease.owner(), "concurrency", d.slots.total, "functions", len(d.claimer.funcs), "scan", p.opts.Scan)

	background, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { p.commits.Watch(background, d.expect) })
	wg.Go(func() { d.prune(background) })
	for _, w := range p.opts.Wakers {
		wg.Go(func() { d.listen(background, w) })
	}
	wg.Go(func() {
		for untilNext(background, p.schedule, time.Now) == nil {
			d.wakeups.add(scanDue)
		}
	})
	d.wakeups.add(scanDue)

	d.recovery.allowRefills(true)
	d.loop(ctx)
	d.recovery.allowRefills(false)

	cancel()
	grace := p.opts.ShutdownGrace
	if d.poolClosed.Err() != nil {
		grace = 0
	}
	err = d.shutDown(grace)
	stop()
	if d.poolClosed.Err() != nil {
		err = errors.Join(errPoolClosed, err)
	}
	wg.Wait() // last: a Waker that does not return must keep nobody's outcome from being recorded
	d.log.Info("outbox: stopped", "process", d.lease.owner())
	if err != nil {
		return fmt.Errorf("outbox: run: %w", err)
	}
	return nil
}

var errPoolClosed = errors.New("the pool was closed before Run had ended, so what ran then is recorded by nobody and will be " +
	"taken for interrupted: end Run's context, wait until Run returns, and then close the pool")

// begin registers the process and starts its heartbeats and its writer; stop ends them. Who is to stay waits for a database
// that cannot be reached, and watches the other processes.
func (p *Plugin) begin(ctx context.Context, stay bool) (d *dispatcher, stop func(), err error) {
	s, err := p.bound()
	if err != nil {
		return nil, nil, err
	}
	d = p.newDispatcher(s)
	if err := d.untilReachable(ctx, stay, func(ctx context.Context) (err error) {
		if s, err = p.placed(ctx); err == nil {
			d.store = s
			err = s.checkSchema(ctx, &p.compared)
		}
		return err
	}); err != nil {
		d.lease.stop()
		return nil, nil, err
	}
	if err := p.registry.seal(); err != nil {
		d.lease.stop()
		return nil, nil, err
	}
	only := stay && p.opts.SingleProcess
	if only {
		err = d.untilReachable(ctx, stay, d.lockSingle)
	}
	if err == nil {
		err = d.untilReachable(ctx, stay, d.register)
	}
	if err == nil && only {
		if err = d.untilReachable(ctx, stay, d.inherit); err != nil {
			last, cancel := outlive(ctx, d.statementLimit())
			_ = s.unregister(last, d.lease.owner())
			cancel()
		}
	}
	if err != nil {
		d.unlockSingle()
		p.registry.unseal()
		d.lease.stop()
		return nil, nil, err
	}
	// At once, and not only when the loop is over: a claim's reply may come meanwhile.
	ended := context.AfterFunc(ctx, func() { d.draining.Store(true) })
	beats, stopBeats := context.WithCancel(context.Background())
	written := make(chan struct{})
	stopWriter := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { d.heartbeats(beats, stay) })
	go func() { defer close(written); d.completer.run(stopWriter) }()
	return d, func() {
		ended()
		close(stopWriter)
		<-written
		stopBeats()
		wg.Wait()
		d.lease.stop()
		d.poller.nextDue.Stop()
		d.stopWriting()
		last, cancel := context.WithTimeout(context.Background(), min(d.statementLimit(), farewellLimit))
		defer cancel()
		d.recovery.run(last)
		// Whatever is left behind is an orphan from now on. The connection may be one that the end of the heartbeats has
		// broken.
		err := s.unregister(last, d.lease.owner())
		for try := 1; try < 3 && err != nil && dialect.Classify(err) == dialect.Lost; try++ {
			err = s.unregister(last, d.lease.owner())
		}
		if err != nil {
			d.log.Warn("outbox: process row not removed", "process", d.lease.owner(), "err", err)
		}
		d.unlockSingle()
		p.registry.unseal()
	}, nil
}

// farewellLimit bounds the last statements of a Run whose context has ended.
const farewellLimit = 5 * time.Second

// outlive is a context of a statement that the end of ctx does not cut short, for its effect is to
// be known; but it ends soon after ctx, because the database may not answer at all.
func outlive(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	longer, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(statementGrace, cancel) })
	return longer, func() { stop(); cancel() }
}

const statementGrace = 2 * time.Second

// untilReachable tries again while the database is busy, as when another process holds SQLite's
// write lock. With stay it also tries again while the database cannot be reached.
func (d *dispatcher) untilReachable(ctx context.Context, stay bool, f func(context.Context) error) error {
	for {
		limited, cancel := context.WithTimeout(ctx, d.statementLimit())
		err := f(limited)
		// Where one at a time can write, whoever waits for long waits for a lock: a busy timeout may be longer than ours.
		locked := d.store.d.Serial() && limited.Err() != nil
		cancel()
		class := dialect.Classify(err)
		again := class == dialect.Busy || class == dialect.Retry || class == dialect.Lost && stay || locked
		if err == nil || !again || ctx.Err() != nil {
			d.outages.recovered("start")
			return err
		}
		d.outages.failed("start", err)
		if wait(ctx, 100*time.Millisecond) != nil {
			return err
		}
	}
}

func (d *dispatcher) wake() { d.wakeups.add(maybeDue) }

// loseRuns ends the contexts of the handlers that run now, whose claims are lost.
func (d *dispatcher) loseRuns() { d.slots.each(func(r *run) { r.cancel(ErrClaimLost) }) }

// endRuns ends the contexts of the handlers when the grace of a shutdown is over. Nothing is
// started any more, so no later ones follow.
func (d *dispatcher) endRuns() {
	d.slots.each(func(r *run) {
		r.cancel(errShutdown)
		r.giveUpIfOver()
	})
}
