package outbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorm-outbox/outbox/internal/dialect"
)

// dispatcher is one Run or RunDue.
type dispatcher struct {
	p     *Plugin
	store *store
	log   *slog.Logger

	funcs, txFuncs, plainFuncs, repeatable []string // what this process can run

	slots     int
	writers   int // of outcomes
	lease     *lease
	finisher  *finisher
	outages   outages
	txTurn    chan struct{} // on a serial database: whose turn it is to write
	inTx      atomic.Int32  // transactional runs in progress
	txFirst   atomic.Int32  // odd and even: whose turn it is to be claimed first
	largest   largest
	renewed   atomic.Int64 // when renew was called, in nanoseconds
	backlog   backlog
	txBacklog backlog     // where transactional tasks are claimed apart, theirs
	minding   atomic.Bool // a heartbeat, or what follows it, waits for the database

	writeCtx    context.Context // of what must be written after a cancellation
	stopWriting context.CancelFunc
	poolClosed  context.Context // has ended when the application has closed the pool
	drain       chan struct{}   // closed when runs that wait for their turn are to give it up, and idle workers to end
	workers     workers
	draining    atomic.Bool // nothing more is to be started
	ran         atomic.Int64
	misfits     sync.Map // functions whose tasks went back for another process, which was logged

	mu     sync.Mutex
	runs   map[*run]struct{}
	strays bool      // the table has more running tasks of this process than it knows
	doubt  time.Time // until then, claims whose reply was lost may turn up; zero once it was looked for them after that

	reserved   int            // slots that claims under way may fill: free ones, and those of a group that is exchanged
	accepting  bool           // the loop runs, so an exchange may claim
	exchanging int            // so many are under way
	reclaiming bool           // or about to: no exchange may claim
	hadRun     map[string]int // attempts, by id, whose outcome was refused or given up; their rows may still be running

	single single // of begin, the heartbeats, and the end

	alone sync.WaitGroup // writers of outcomes that the database does not take

	woken, expected, scans, slotFree, reconcile chan struct{}

	untaken map[string]bool // of the heartbeats alone: orphans that the database refuses to change, which was logged

	// of the loop alone
	pause      time.Duration
	probed     time.Time
	pollGap    time.Duration // to the next poll, because the last one took long
	passedOver int           // polls in a row that found due what the claims after them did not
	nextDue    *time.Timer
	seen       map[string]bool    // RunDue: ids that have run
	held       []dialect.Requeued // RunDue: those of them that were claimed again
	unserved   map[string]bool    // paths that were reported as parked
	foreign    map[string]bool    // queues of others that had due tasks at the last probe
	deserted   map[string]int     // those that no live process serves: in how many looks they were seen
}

func (p *Plugin) newDispatcher(s *store) *dispatcher {
	d := &dispatcher{
		p: p, store: s, log: p.log, slots: p.opts.Concurrency,
		drain: make(chan struct{}), workers: workers{idle: make(chan struct{})}, runs: map[*run]struct{}{}, hadRun: map[string]int{}, unserved: map[string]bool{},
		foreign: map[string]bool{}, deserted: map[string]int{},
		woken: make(chan struct{}, 1), expected: make(chan struct{}, 1), scans: make(chan struct{}, 1), slotFree: make(chan struct{}, 1),
		reconcile: make(chan struct{}, 1),
	}
	d.outages.log, d.outages.pool = p.log, s.pool
	d.outages.renew = d.renew
	d.outages.locked = func() bool { return s.d.Serial() && d.inTx.Load() > 0 }
	d.funcs = p.registry.paths(func(*handler) bool { return true })
	d.txFuncs = p.registry.paths(func(h *handler) bool { return h.tx })
	d.plainFuncs = p.registry.paths(func(h *handler) bool { return !h.tx })
	d.repeatable = p.registry.paths((*handler).repeatable)
	d.writers = 1
	small := cmp.Or(p.smallGroup, smallGroup)
	if s.d.Serial() {
		d.txTurn = make(chan struct{}, 1)
	} else if d.slots > small {
		d.writers = 2
	}
	d.backlog.firsts = s.d.Serial()
	d.backlog.unused, d.txBacklog.unused = d.apartTx() && len(d.plainFuncs) == 0, !d.apartTx()
	d.finisher = newFinisher(max(d.slots/d.writers, small))
	d.writeCtx, d.stopWriting = context.WithCancel(context.Background())
	d.poolClosed, d.outages.closed = context.WithCancel(context.Background())
	context.AfterFunc(d.poolClosed, func() {
		d.stopWriting()
		d.endRuns()
	})
	d.lease = newLease(p.opts.HeartbeatLimit*2/3, d.leaseExpired)
	d.nextDue = time.NewTimer(time.Hour)
	return d
}

// smallGroup of outcomes: it waits for the one that is being written, because a commit costs more than what it holds.
const smallGroup = 25

// statementLimit bounds one statement of the dispatcher: a connection that is half open must not stop it for ever.
func (d *dispatcher) statementLimit() time.Duration {
	return max(d.p.opts.HeartbeatLimit/3, time.Second)
}

func (d *dispatcher) backoff(attempt int) time.Duration { return d.p.backoff(attempt) }

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
	d.log.Info("outbox: started", "process", d.lease.owner(), "concurrency", d.slots, "functions", len(d.funcs), "scan", p.opts.Scan)

	background, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { p.commits.Watch(background, d.expect) })
	wg.Go(func() { d.prune(background) })
	for _, w := range p.opts.Wakers {
		wg.Go(func() { d.listen(background, w) })
	}
	wg.Go(func() {
		for untilNext(background, p.schedule, time.Now) == nil {
			signal(d.scans)
		}
	})
	signal(d.scans)

	d.accept(true)
	d.loop(ctx)
	d.accept(false)

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
			last, cancel := d.outlive(ctx)
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
	var writing sync.WaitGroup
	for range d.writers {
		writing.Go(func() { d.writeOutcomes(stopWriter) })
	}
	go func() { defer close(written); writing.Wait(); d.alone.Wait() }()
	return d, func() {
		ended()
		close(stopWriter)
		<-written
		stopBeats()
		wg.Wait()
		d.lease.stop()
		d.nextDue.Stop()
		d.stopWriting()
		last, cancel := context.WithTimeout(context.Background(), min(d.statementLimit(), farewellLimit))
		defer cancel()
		d.reclaim(last)
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
func (d *dispatcher) outlive(ctx context.Context) (context.Context, context.CancelFunc) {
	longer, stop := outlive(ctx)
	limited, cancel := context.WithTimeout(longer, d.statementLimit())
	return limited, func() { cancel(); stop() }
}

// outlive is a context that ends soon after ctx, and not with it.
func outlive(ctx context.Context) (context.Context, context.CancelFunc) {
	longer, cancel := context.WithCancel(context.WithoutCancel(ctx))
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

// loop claims and starts tasks until ctx is done. Whatever wakes it, the database decides what is due.
func (d *dispatcher) loop(ctx context.Context) {
	for {
		probe, expected := true, false
		select {
		case <-ctx.Done():
			return
		case <-d.scans:
		case <-d.woken:
		case <-d.nextDue.C:
		case <-d.expected:
			probe, expected = false, true
		case <-d.slotFree:
			probe = false
		case <-d.reconcile:
			d.reclaim(ctx)
			d.park(ctx) // also while every claim finds something else to do
			d.findDeserted(ctx)
			probe = false
		}
		if ctx.Err() != nil {
			return
		}
		asked, err := d.dispatch(ctx, probe, expected)
		if err != nil && ctx.Err() == nil {
			d.outages.failed("claim", err)
			d.found(nil)
			d.pause = min(max(2*d.pause, 100*time.Millisecond), 5*time.Second)
			d.nextDue.Reset(d.pause)
		} else if err == nil && asked {
			d.outages.recovered("claim")
			d.pause = 0
		}
	}
}

// dispatch fills the free slots. With probe it asks first what is due; without, it only goes on where a claim came back
// full, or where tasks are expected. It reports whether it asked the database at all.
func (d *dispatcher) dispatch(ctx context.Context, probe, expected bool) (asked bool, err error) {
	if !d.lease.valid() {
		return false, nil
	}
	if probe {
		// Every commit of a busy application may wake us up, while no slot is free, or while a poll of thousands of queues
		// takes long.
		gap := d.pollGap
		if d.room() == 0 {
			gap = max(gap, probeGap)
		}
		if wait := gap - time.Since(d.probed); wait > 0 {
			d.nextDue.Reset(wait)
			probe = false
		} else {
			begun := time.Now()
			if err := d.probe(ctx); err != nil {
				return true, err
			}
			d.probed, d.pollGap = time.Now(), 0
			if took := d.probed.Sub(begun); took > probeGap {
				d.pollGap = min(4*took, maxPollGap)
			}
		}
	} else if !expected && d.finisher.busy() {
		return false, nil // the group that is written next claims for its slots and for those that are free
	}
	if d.room() == 0 || !d.mayHaveMore() {
		return probe, nil
	}
	total := 0
	for ctx.Err() == nil && d.lease.valid() {
		n, asked, err := d.claim(ctx, "")
		if err != nil {
			return true, err
		}
		if total += n; !asked || d.room() == 0 || !d.mayHaveMore() {
			break
		}
	}
	if total > 0 {
		d.passedOver = 0
	} else if !d.mayHaveMore() && probe {
		d.park(ctx)
		if pause, again := d.lookAgain(); again {
			d.nextDue.Reset(pause)
		}
	}
	return true, nil
}

// lookAgain tells when to poll again after a poll that found something due and claims that found
// nothing. Where a claim locks each row that it examines, the claims of another process may have
// kept rows from ours for a moment. Without another look they would wait for the next scan, or
// RunDue would leave them.
func (d *dispatcher) lookAgain() (pause time.Duration, again bool) {
	if d.store.d.OneStatement() || d.store.d.Serial() || d.passedOver == 3 {
		d.passedOver = 0
		return 0, false
	}
	d.passedOver++
	return 10 * time.Millisecond << d.passedOver, true
}

// probeGap is the time from one poll to the next while every slot is taken. A poll that takes longer is followed by a gap of
// four times as long, at most maxPollGap.
const (
	probeGap   = 10 * time.Millisecond
	maxPollGap = 500 * time.Millisecond
)

// room is the number of slots that are free and that no claim under way may fill.
func (d *dispatcher) room() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return max(0, d.slots-len(d.runs)-d.reserved)
}

func (d *dispatcher) running() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.runs)
}

// reserve takes what room there is for a claim.
func (d *dispatcher) reserve() (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n = max(0, d.slots-len(d.runs)-d.reserved)
	d.reserved += n
	return n
}

func (d *dispatcher) unreserve(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.reserved -= n
}

// free gives a slot back.
func (d *dispatcher) free(r *run) {
	d.mu.Lock()
	delete(d.runs, r)
	d.mu.Unlock()
	if r.handler != nil && r.handler.tx {
		d.inTx.Add(-1)
	}
}

func (d *dispatcher) wake() { signal(d.woken) }

// expect has due tasks claimed from some lanes, without a probe before; without lanes, from any.
func (d *dispatcher) expect(lanes []dialect.Lane) {
	if lanes == nil || !d.store.d.OneStatement() { // there a claim that finds nothing takes locks, and more than a look
		d.wake()
		return
	}
	if queues := d.p.opts.Queues; len(queues) > 0 {
		lanes = slices.DeleteFunc(lanes, func(l dialect.Lane) bool { return !slices.Contains(queues, l.Queue) })
	}
	if len(lanes) > 0 {
		d.backlog.expect(lanes)
		d.txBacklog.expect(lanes)
		signal(d.expected)
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// loseRuns ends the contexts of the handlers that run now, whose claims are lost.
func (d *dispatcher) loseRuns() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for r := range d.runs {
		r.cancel(ErrClaimLost)
	}
}

// endRuns ends the contexts of the handlers when the grace of a shutdown is over. Nothing is started any more, so there are no
// later ones.
func (d *dispatcher) endRuns() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for r := range d.runs {
		r.cancel(errShutdown)
		r.abandonIfOver()
	}
}
