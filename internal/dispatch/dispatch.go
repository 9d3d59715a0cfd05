// Package dispatch runs tasks: a loop over slots, lease, claimer, completer and recovery, each with
// its own lock. It knows handlers as functions of a name and rows as package store has them, and
// neither the API nor how databases differ.
//
// The route of a task, a file each: the loop polls (poll.go), claims for the slots that are free
// (claimer.go) and starts runs, which workers take (workers.go). A run (run.go, runstate.go) calls
// the handler; a transactional one does so in the transaction that ends its task (txrun.go). What
// becomes of the task is a pure function (transition.go). The completer writes it (completer.go,
// groupwriter.go). A process proves with heartbeats that it is alive (heartbeat.go, lease.go), and
// rescues the tasks of those that are not (rescue.go).
package dispatch

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"iter"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorm-outbox/outbox/internal/dialect"
	"github.com/gorm-outbox/outbox/internal/store"
)

// Config is what a Run needs. Nothing in it is optional unless it says so; functions that call code
// of the application are safe to call.
type Config struct {
	// Place returns the store, with the schema of its tables known. It is asked until the database
	// can be reached.
	Place  func(context.Context) (*store.Store, error)
	Pool   *sql.DB // the store's
	Serial bool    // one transaction at a time can write to the database

	Functions map[string]*Function // by name, aliases included
	Log       *slog.Logger
	Backoff   func(attempt int) time.Duration
	Model     func(*store.Task) any                                // the API's model of a task, for handlers and the observer
	Observer  Observer                                             // optional
	Claimed   func(ids iter.Seq[string])                           // told which tasks this process has claimed
	Watch     func(context.Context, func(due []dialect.Partition)) // tells of commits, until the context is done
	Wakers    []Waker
	Schedule  Schedule
	Scan      string // the schedule as it was given, for the log
	TestClock bool   // the database's clock is a test's

	Concurrency    int
	Queues         []string // empty means all
	Heartbeat      time.Duration
	HeartbeatLimit time.Duration
	SingleProcess  bool
	ShutdownGrace  time.Duration
	CancelGrace    time.Duration
	RetainSuccess  time.Duration // negative for ever, as RetainErrors
	RetainErrors   time.Duration
	MaxError       int // bytes

	// MinGroup replaces minGroup in tests; zero means no.
	MinGroup int
}

// Function is a handler.
type Function struct {
	Transactional bool
	Repeatable    bool                                     // an interrupted run may be run again without counting
	Isolation     sql.IsolationLevel                       // of a transactional one
	Bind          func(args string) (reflect.Value, error) // survives methods of the arguments
	Call          func(context.Context, *Tx, reflect.Value) (value any, err error)
	Encode        func(value any) (json *string, err error) // survives methods of the value
}

// Observer is told of runs. model is what Config.Model has made of the task.
type Observer interface {
	// Started may return another context for the handler; nil means the same one.
	Started(ctx context.Context, model any) context.Context
	// Ended is called once for each Started.
	Ended(ctx context.Context, model any, end End)
}

// End is how one run ended.
type End struct {
	Status   string // empty when the task is pending again
	Reason   string
	Err      error
	Duration time.Duration
	Next     time.Duration // until the next attempt, when the task is pending again
}

// Waker tells that tasks of other processes may be due.
type Waker interface {
	Listen(ctx context.Context, pool *sql.DB, wake func()) error
}

// Schedule tells the next time after another one; the zero Time when none comes.
type Schedule interface{ Next(time.Time) time.Time }

// dispatcher is one Run or RunDue.
type dispatcher struct {
	cfg    Config
	values context.Context // Run's, without its end: handlers see its values
	store  *store.Store
	log    *slog.Logger

	slots     *slots
	lease     *lease
	claimer   *claimer
	completer *completer
	recovery  *recovery
	wakeups   *wakeups
	outages   *outages
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

// open waits until the database can be reached and has the tables, and returns a dispatcher. With
// stay it waits for as long as that takes.
func open(ctx context.Context, cfg Config, stay bool) (*dispatcher, error) {
	o := &outages{log: cfg.Log, pool: cfg.Pool}
	var poolClosed context.Context
	poolClosed, o.closed = context.WithCancel(context.Background())
	var s *store.Store
	if err := untilReachable(ctx, cfg, o, stay, func(ctx context.Context) (err error) {
		if s, err = cfg.Place(ctx); err == nil {
			err = s.CheckSchema(ctx)
		}
		return err
	}); err != nil {
		return nil, err
	}
	return newDispatcher(ctx, cfg, s, o, poolClosed), nil
}

func newDispatcher(ctx context.Context, cfg Config, s *store.Store, o *outages, poolClosed context.Context) *dispatcher {
	d := &dispatcher{
		cfg: cfg, values: context.WithoutCancel(ctx), store: s, log: cfg.Log, slots: newSlots(cfg.Concurrency), wakeups: newWakeups(), outages: o, poolClosed: poolClosed,
		drain: make(chan struct{}), workers: workers{idle: make(chan struct{})}, unserved: map[string]bool{}, deserted: map[string]int{},
	}
	d.writeCtx, d.stopWriting = context.WithCancel(context.Background())
	context.AfterFunc(d.poolClosed, func() {
		d.stopWriting()
		d.endRuns()
	})
	o.renew = d.renew
	o.locked = func() bool { return s.Dialect.Serial() && d.slots.inTransaction() }
	d.lease = newLease(cfg.HeartbeatLimit*2/3, d.leaseExpired)
	d.recovery = &recovery{store: s, lease: d.lease, slots: d.slots, outages: d.outages, wakeups: d.wakeups, log: d.log,
		backoff: cfg.Backoff, limit: cfg.statementLimit(), doubt: cfg.HeartbeatLimit, outcomeless: map[string]int{}}
	d.claimer = d.newClaimer()
	d.completer = d.newCompleter()
	d.poller = newPoller()
	if s.Dialect.Serial() {
		d.txTurn = make(chan struct{}, 1)
	}
	return d
}

func (d *dispatcher) newClaimer() *claimer {
	c := &claimer{store: d.store, lease: d.lease, slots: d.slots, recovery: d.recovery, limit: d.cfg.statementLimit(), start: d.start,
		funcs:      d.cfg.names(func(*Function) bool { return true }),
		txFuncs:    d.cfg.names(func(f *Function) bool { return f.Transactional }),
		plainFuncs: d.cfg.names(func(f *Function) bool { return !f.Transactional }),
		repeatable: d.cfg.names(func(f *Function) bool { return f.Repeatable }),
	}
	c.txApart = d.store.Dialect.Serial() && len(c.txFuncs) > 0
	c.cursors.firsts = d.store.Dialect.Serial()
	c.cursors.unused, c.txCursors.unused = c.txApart && len(c.plainFuncs) == 0, !c.txApart
	return c
}

func (d *dispatcher) newCompleter() *completer {
	small := cmp.Or(d.cfg.MinGroup, minGroup)
	writers := 1
	if !d.store.Dialect.Serial() && d.slots.total > small {
		writers = 2
	}
	return &completer{store: d.store, lease: d.lease, slots: d.slots, claimer: d.claimer, recovery: d.recovery, outages: d.outages,
		wakeups: d.wakeups, log: d.log, limit: d.cfg.statementLimit(), ctx: d.writeCtx,
		writers: writers, full: min(max(d.slots.total/writers, small), store.MaxRows), signal: make(chan struct{}, 1)}
}

// names are those of the functions for which keep says so, sorted.
func (cfg Config) names(keep func(*Function) bool) []string {
	names := slices.Sorted(maps.Keys(cfg.Functions))
	return slices.DeleteFunc(names, func(name string) bool { return !keep(cfg.Functions[name]) })
}

// statementLimit bounds one statement of the dispatcher: a connection that is half open must not
// stop it for ever.
func (cfg Config) statementLimit() time.Duration { return max(cfg.HeartbeatLimit/3, time.Second) }

// Run dispatches until ctx is done, then drains: it starts nothing more, gives running handlers
// ShutdownGrace, ends their contexts, waits for CancelGrace, and records their outcomes. It returns
// nil after a clean drain, otherwise an error that says what was left.
func Run(ctx context.Context, cfg Config) error {
	d, stop, err := begin(ctx, cfg, true)
	if err != nil {
		if ctx.Err() != nil {
			cfg.Log.Info("outbox: not started, because Run's context has ended", "cause", context.Cause(ctx))
			return nil
		}
		return err
	}
	ctx, end := context.WithCancel(ctx)
	defer end()
	defer context.AfterFunc(d.poolClosed, end)()
	d.checkPool()
	d.log.Info("outbox: started", "process", d.lease.owner(), "concurrency", d.slots.total, "functions", len(d.claimer.funcs), "scan", cfg.Scan)

	background, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { cfg.Watch(background, d.expect) })
	wg.Go(func() { d.prune(background) })
	for _, w := range cfg.Wakers {
		wg.Go(func() { d.listen(background, w) })
	}
	wg.Go(func() {
		for untilNext(background, cfg.Schedule, time.Now) == nil {
			d.wakeups.add(scanDue)
		}
	})
	d.wakeups.add(scanDue)

	d.recovery.allowRefills(true)
	d.loop(ctx)
	d.recovery.allowRefills(false)

	cancel()
	grace := cfg.ShutdownGrace
	if d.poolClosed.Err() != nil {
		grace = 0
	}
	err = d.drainRuns(grace)
	stop()
	if d.poolClosed.Err() != nil {
		err = errors.Join(errPoolClosed, err)
	}
	wg.Wait() // last: a Waker that does not return must keep no outcome from being recorded
	d.log.Info("outbox: stopped", "process", d.lease.owner())
	return err
}

var errPoolClosed = errors.New("the pool was closed before Run had ended, so what ran then is recorded by nobody and will be " +
	"taken for interrupted: end Run's context, wait until Run returns, and then close the pool")

// begin registers the process and starts its heartbeats and its completer; stop ends them. With
// stay it waits for a database that cannot be reached, and watches the other processes.
func begin(ctx context.Context, cfg Config, stay bool) (d *dispatcher, stop func(), err error) {
	d, err = open(ctx, cfg, stay)
	if err != nil {
		return nil, nil, err
	}
	if err := d.enter(ctx, stay); err != nil {
		d.unlockSingle()
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
		d.leave()
	}, nil
}

// enter registers the process. The only process on its database rescues the tasks of all others
// first.
func (d *dispatcher) enter(ctx context.Context, stay bool) error {
	reach := func(f func(context.Context) error) error { return untilReachable(ctx, d.cfg, d.outages, stay, f) }
	only := stay && d.cfg.SingleProcess
	if only {
		if err := reach(d.lockSingle); err != nil {
			return err
		}
	}
	if err := reach(d.register); err != nil {
		return err
	}
	if only {
		if err := reach(d.inherit); err != nil {
			last, cancel := outlive(ctx, d.cfg.statementLimit())
			defer cancel()
			_ = d.store.Unregister(last, d.lease.owner())
			return err
		}
	}
	return nil
}

// leave removes the process's row. Whatever it has left behind is an orphan from then on.
func (d *dispatcher) leave() {
	last, cancel := context.WithTimeout(context.Background(), min(d.cfg.statementLimit(), farewellLimit))
	defer cancel()
	d.recovery.run(last)
	err := d.store.Unregister(last, d.lease.owner())
	// The connection may be one that the end of the heartbeats has broken.
	for try := 1; try < 3 && err != nil && dialect.Classify(err) == dialect.Lost; try++ {
		err = d.store.Unregister(last, d.lease.owner())
	}
	if err != nil {
		d.log.Warn("outbox: process row not removed", "process", d.lease.owner(), "err", err)
	}
	d.unlockSingle()
}

// farewellLimit bounds the last statements of a Run whose context has ended.
const farewellLimit = 5 * time.Second

// outlive is dialect.Outlive with a limit.
func outlive(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	longer, stop := dialect.Outlive(ctx)
	limited, cancel := context.WithTimeout(longer, limit)
	return limited, func() { cancel(); stop() }
}

// untilReachable tries again while the database is busy, as when another process holds SQLite's
// write lock. With stay it also tries again while the database cannot be reached.
func untilReachable(ctx context.Context, cfg Config, o *outages, stay bool, f func(context.Context) error) error {
	for {
		limited, cancel := context.WithTimeout(ctx, cfg.statementLimit())
		err := f(limited)
		// Where one at a time can write, a long wait is one for a lock: a busy timeout may be
		// longer than ours.
		locked := cfg.Serial && limited.Err() != nil
		cancel()
		class := dialect.Classify(err)
		again := class == dialect.Busy || class == dialect.Retry || class == dialect.Lost && stay || locked
		if err == nil || !again || ctx.Err() != nil {
			o.recovered("start")
			return err
		}
		o.failed("start", err)
		if dialect.Wait(ctx, 100*time.Millisecond) != nil {
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
