package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/robfig/cron/v3"

	"github.com/gorm-outbox/outbox/internal/dialect"
)

// dispatcher is one Run or RunDue.
type dispatcher struct {
	p     *Plugin
	store *store
	log   *slog.Logger

	funcs, txFuncs, plainFuncs, repeatable []string // what this process can run

	slots    int
	finisher *finisher
	trouble  trouble
	txTurn   chan struct{} // on a serial database: whose turn it is to write
	inTx     atomic.Int32  // transactional runs in progress

	runCtx      context.Context // of the handlers; ends when the grace is over
	endRuns     context.CancelCauseFunc
	writeCtx    context.Context // of what must be written after a cancellation
	stopWriting context.CancelFunc
	drain       chan struct{} // closed when nothing more is to be started
	draining    atomic.Bool
	ran         atomic.Int64

	mu       sync.Mutex
	id       string // of the process row; a new one after having been declared dead
	lastBeat time.Time
	runs     map[*run]struct{}
	lapse    *time.Timer

	woken, scans, slotFree, reconcile chan struct{}

	// of the loop alone
	lanes    []dialect.Lane // due at the last probe
	more     bool           // the last claim was full: there may be more
	rotation int
	doubt    time.Time // until then, claims whose reply was lost may turn up
	pause    time.Duration
	nextDue  *time.Timer
	txFirst  bool
	seen     map[string]bool // RunDue: ids that have run
	unserved map[string]bool // paths that were reported as parked
}

func (p *Plugin) newDispatcher(s *store) *dispatcher {
	d := &dispatcher{
		p: p, store: s, log: p.log, slots: p.opts.Concurrency, finisher: newFinisher(),
		drain: make(chan struct{}), runs: map[*run]struct{}{}, unserved: map[string]bool{},
		woken: make(chan struct{}, 1), scans: make(chan struct{}, 1), slotFree: make(chan struct{}, 1),
		reconcile: make(chan struct{}, 1),
	}
	d.trouble.log = p.log
	d.funcs = p.registry.paths(func(*handler) bool { return true })
	d.txFuncs = p.registry.paths(func(h *handler) bool { return h.tx })
	d.plainFuncs = p.registry.paths(func(h *handler) bool { return !h.tx })
	d.repeatable = p.registry.paths((*handler).repeatable)
	if s.d.Serial() {
		d.txTurn = make(chan struct{}, 1)
	}
	d.runCtx, d.endRuns = context.WithCancelCause(context.Background())
	d.writeCtx, d.stopWriting = context.WithCancel(context.Background())
	d.lapse = time.AfterFunc(time.Hour, d.lapsed)
	d.nextDue = time.NewTimer(time.Hour)
	return d
}

// statementLimit bounds one statement of the dispatcher: a connection that is half open must not stop it for ever.
func (d *dispatcher) statementLimit() time.Duration {
	return max(d.p.opts.HeartbeatLimit/3, time.Second)
}

func (d *dispatcher) backoff(attempt int) time.Duration { return d.p.opts.Backoff(attempt) }

// Run dispatches until ctx is done, then drains: it starts nothing more, gives running handlers Options.ShutdownGrace,
// then ends their contexts and waits for Options.CancelGrace, and records their outcomes. It returns nil after a clean
// drain, otherwise an error that says what was left; such tasks are recorded as interrupted.
//
// One Run at a time per plugin; any number of processes may run on one database. The tables must be there (ErrSchema).
// A database that goes away later is waited for.
func (p *Plugin) Run(ctx context.Context) error {
	if !p.running.CompareAndSwap(false, true) {
		return errors.New("outbox: run: this plugin is running already")
	}
	defer p.running.Store(false)
	d, stop, err := p.begin(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("outbox: run: %w", err)
	}
	d.checkPool()
	d.log.Info("outbox: started", "process", d.processID(), "concurrency", d.slots, "functions", len(d.funcs), "scan", p.opts.Scan)

	background, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { p.wake.watch(background, d.wake) })
	wg.Go(func() { d.prune(background) })
	for _, w := range p.opts.Wakers {
		wg.Go(func() { d.listen(background, w) })
	}
	scans := cron.New(cron.WithLogger(cron.DiscardLogger), cron.WithChain(cron.Recover(cron.DiscardLogger)))
	scans.Schedule(p.schedule, cron.FuncJob(func() { poke(d.scans) }))
	scans.Start()
	poke(d.scans)

	d.loop(ctx)

	<-scans.Stop().Done()
	cancel()
	wg.Wait()
	err = d.shutDown(p.opts.ShutdownGrace)
	stop()
	d.log.Info("outbox: stopped", "process", d.processID())
	if err != nil {
		return fmt.Errorf("outbox: run: %w", err)
	}
	return nil
}

// RunDue runs what is due now, once, and returns how many runs there were. Tasks that become due meanwhile, retries
// included, are left for the next call. It fails when the database does, not when a handler does: how tasks ended is
// in history. When ctx ends, it drains as Run does and returns ctx's error.
func (p *Plugin) RunDue(ctx context.Context) (int, error) {
	d, stop, err := p.begin(ctx)
	if err != nil {
		return 0, fmt.Errorf("outbox: run due: %w", err)
	}
	d.seen = map[string]bool{}
	grace := p.opts.ShutdownGrace
	if err = d.runDue(ctx); err == nil {
		grace = 0
	}
	if left := d.shutDown(grace); err == nil {
		err = left
	}
	stop()
	if err != nil {
		return int(d.ran.Load()), fmt.Errorf("outbox: run due: %w", err)
	}
	return int(d.ran.Load()), nil
}

// begin registers the process and starts its heartbeats and its writer; stop ends them.
func (p *Plugin) begin(ctx context.Context) (d *dispatcher, stop func(), err error) {
	s, err := p.bound()
	if err != nil {
		return nil, nil, err
	}
	if err := s.checkSchema(ctx); err != nil {
		return nil, nil, err
	}
	if err := p.registry.seal(); err != nil {
		return nil, nil, err
	}
	d = p.newDispatcher(s)
	abort := func(err error) (*dispatcher, func(), error) {
		p.registry.unseal()
		d.lapse.Stop()
		return nil, nil, err
	}
	if err := d.register(ctx); err != nil {
		return abort(err)
	}
	if err := d.unpark(ctx); err != nil {
		return abort(errors.Join(err, s.unregister(context.WithoutCancel(ctx), d.id)))
	}
	beats, stopBeats := context.WithCancel(context.Background())
	written := make(chan struct{})
	stopWriter := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { d.heartbeats(beats) })
	go func() { defer close(written); d.writeOutcomes(stopWriter) }()
	return d, func() {
		close(stopWriter)
		<-written
		stopBeats()
		wg.Wait()
		d.lapse.Stop()
		d.nextDue.Stop()
		d.stopWriting()
		last, cancel := context.WithTimeout(context.Background(), d.statementLimit())
		defer cancel()
		d.reclaim(last)
		// Whatever is left behind is an orphan from now on.
		if err := s.unregister(last, d.processID()); err != nil {
			d.log.Warn("outbox: process row not removed", "process", d.processID(), "err", err)
		}
		p.registry.unseal()
	}, nil
}

// loop claims and starts tasks until ctx is done. Whatever wakes it, the database decides what is due.
func (d *dispatcher) loop(ctx context.Context) {
	for {
		probe := true
		select {
		case <-ctx.Done():
			return
		case <-d.scans:
		case <-d.woken:
		case <-d.nextDue.C:
		case <-d.slotFree:
			probe = false
		case <-d.reconcile:
			d.reclaim(ctx)
			probe = false
		}
		if ctx.Err() != nil {
			return
		}
		if err := d.dispatch(ctx, probe); err != nil && ctx.Err() == nil {
			d.trouble.met("claim", err)
			d.more = false
			d.pause = min(max(2*d.pause, 100*time.Millisecond), 5*time.Second)
			d.nextDue.Reset(d.pause)
		} else if err == nil {
			d.trouble.over("claim")
			d.pause = 0
		}
	}
}

// dispatch fills the free slots. With probe it asks first what is due; without, it only goes on where a claim came back
// full.
func (d *dispatcher) dispatch(ctx context.Context, probe bool) error {
	free := d.room()
	if free == 0 {
		if probe {
			d.more, d.lanes = true, d.lanes[:0] // ask when there is room
		}
		return nil
	}
	if !d.mayClaim() || !probe && !d.more {
		return nil
	}
	if probe || len(d.lanes) == 0 {
		if err := d.probe(ctx); err != nil {
			return err
		}
		if len(d.lanes) == 0 {
			d.more = false
			return nil
		}
	}
	n, more, err := d.claim(ctx, free, "")
	if err != nil {
		return err
	}
	if d.more = more; n == 0 && !more && probe {
		d.park(ctx)
	}
	return nil
}

// probe asks what is due, and when the next task will be.
func (d *dispatcher) probe(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, d.statementLimit())
	defer cancel()
	found, err := d.store.d.Probe(limited, d.store.pool)
	if err != nil {
		return err
	}
	next := time.Duration(-1)
	d.lanes = d.lanes[:0]
	for _, l := range found {
		if len(d.p.opts.Queues) > 0 && !slices.Contains(d.p.opts.Queues, l.Queue) {
			continue
		}
		if l.Due {
			d.lanes = append(d.lanes, l.Lane)
		}
		if l.Next >= 0 && (next < 0 || l.Next < next) {
			next = l.Next
		}
	}
	if next >= 0 && next < time.Hour {
		d.nextDue.Reset(next)
	}
	d.order()
	return nil
}

// order sorts the lanes by priority, and among queues gives each its turn to be first.
func (d *dispatcher) order() {
	var queues []string
	for _, l := range d.lanes {
		if !slices.Contains(queues, l.Queue) {
			queues = append(queues, l.Queue)
		}
	}
	d.rotation++
	turn := func(l dialect.Lane) int { return (slices.Index(queues, l.Queue) + d.rotation) % len(queues) }
	slices.SortFunc(d.lanes, func(a, b dialect.Lane) int {
		if a.Priority != b.Priority {
			return a.Priority - b.Priority
		}
		return turn(a) - turn(b)
	})
}

// claim takes up to limit due tasks and starts them; until is RunDue's time, or empty. It returns how many there were, and
// whether there may be more.
func (d *dispatcher) claim(ctx context.Context, limit int, until string) (n int, more bool, err error) {
	params := dialect.ClaimParams{Process: d.processID(), Lanes: d.lanes, Funcs: d.funcs, Repeatable: d.repeatable, Limit: limit, Until: until}
	if d.txTurn == nil || len(d.txFuncs) == 0 {
		n, err = d.claimThese(ctx, params)
		return n, n >= limit, err
	}
	// One transaction at a time can write, so at most one transactional task is claimed, in turn with the others.
	for _, tx := range []bool{d.txFirst, !d.txFirst} {
		params.Funcs, params.Limit = d.plainFuncs, limit-n
		if tx {
			if d.inTx.Load() > 0 {
				more = true
				continue
			}
			params.Funcs, params.Limit = d.txFuncs, min(1, limit-n)
		}
		if params.Limit == 0 {
			more = true
			continue
		}
		got, err := d.claimThese(ctx, params)
		if err != nil {
			return n, more, err
		}
		n += got
		more = more || got == params.Limit
	}
	d.txFirst = !d.txFirst
	return n, more, nil
}

func (d *dispatcher) claimThese(ctx context.Context, params dialect.ClaimParams) (int, error) {
	if len(params.Funcs) == 0 {
		return 0, nil
	}
	// Not cut short by a shutdown: what has been claimed is to be known.
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), d.statementLimit())
	defer cancel()
	list, err := d.store.claim(limited, params)
	if err != nil {
		// The reply may be lost though the claim was committed: then tasks are ours that we do not know.
		d.doubt = time.Now().Add(d.p.opts.HeartbeatLimit)
		return 0, err
	}
	slices.SortStableFunc(list, func(a, b claimed) int {
		if a.task.Priority != b.task.Priority {
			return a.task.Priority - b.task.Priority
		}
		return a.task.RunAt.Compare(b.task.RunAt)
	})
	runs := make([]*run, len(list))
	d.mu.Lock()
	for i, c := range list {
		runs[i] = d.newRun(c)
		d.runs[runs[i]] = struct{}{}
		if h := runs[i].handler; h != nil && h.tx {
			d.inTx.Add(1)
		}
	}
	d.mu.Unlock()
	d.p.wake.seen(runs)
	fresh := 0
	for _, r := range runs {
		if d.seen != nil {
			if d.seen[r.task.ID] {
				// Only a clock that stands still lets a task come back within one RunDue.
				r.release()
				r.finish(ending{giveBack: true})
				continue
			}
			d.seen[r.task.ID] = true
		}
		fresh++
		go r.execute()
	}
	return fresh, nil
}

// room is the number of free slots.
func (d *dispatcher) room() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.slots - len(d.runs)
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

func (d *dispatcher) wake() { poke(d.woken) }

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// cancelRuns ends the contexts of the handlers that run now; later ones get a context of their own.
func (d *dispatcher) cancelRuns(cause error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for r := range d.runs {
		r.cancel(cause)
	}
}

// park takes due tasks out of the claim's way that no live process can run.
func (d *dispatcher) park(ctx context.Context) {
	limited, cancel := context.WithTimeout(ctx, d.statementLimit())
	defer cancel()
	funcs, err := d.store.d.Park(limited, d.store.pool, d.lanes, maxRows)
	if err != nil {
		if ctx.Err() == nil {
			d.trouble.met("park", err)
		}
		return
	}
	d.trouble.over("park")
	for _, f := range funcs {
		if !d.unserved[f] {
			d.unserved[f] = true
			d.log.Warn("outbox: tasks parked, no live process has registered their function", "func", f)
		}
	}
}

// reconcileSoon lets the loop look for claims whose reply was lost; in the loop no claim is under way meanwhile.
func (d *dispatcher) reconcileSoon() { poke(d.reconcile) }

// reclaim gives back tasks that are claimed by this process without its knowing.
func (d *dispatcher) reclaim(ctx context.Context) {
	if !time.Now().Before(d.doubt) {
		return
	}
	limited, cancel := context.WithTimeout(ctx, d.statementLimit())
	defer cancel()
	owned, err := d.store.owned(limited, d.processID())
	if err != nil {
		return
	}
	known := map[string]bool{}
	d.mu.Lock()
	for r := range d.runs {
		known[r.task.ID] = true
	}
	d.mu.Unlock()
	var back []dialect.Requeued
	for _, c := range owned {
		if !known[c.task.ID] {
			back = append(back, *requeue(c.task, 0, 1, 0, nil).requeue)
		}
	}
	if len(back) == 0 {
		return
	}
	if _, err := d.store.write(limited, nil, back); err == nil {
		d.log.Warn("outbox: claims whose reply was lost are given back", "count", len(back))
		d.wake()
	}
}

// runDue claims and runs until nothing is left that was due when it began.
func (d *dispatcher) runDue(ctx context.Context) error {
	now, err := d.store.now(ctx)
	if err != nil {
		return err
	}
	// Too short-lived to watch others: only what is long dead is taken over.
	if _, err := d.store.buryOlder(ctx, now.Add(-3*d.p.opts.HeartbeatLimit)); err != nil {
		return err
	}
	if err := d.takeOver(ctx); err != nil {
		return err
	}
	if now, err = d.store.now(ctx); err != nil {
		return err
	}
	if err := d.probe(ctx); err != nil {
		return err
	}
	until := d.store.d.Time(now)
	parked := false
	for len(d.lanes) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		free, n, more := d.room(), 0, false
		if free > 0 {
			if n, more, err = d.claim(ctx, free, until); err != nil {
				return err
			}
		}
		if n > 0 && d.room() > 0 {
			continue
		}
		if n == 0 && !more && d.room() == d.slots {
			if parked {
				break
			}
			parked = true
			d.park(ctx)
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-d.slotFree:
		}
	}
	return nil
}

// shutDown waits for the handlers, tells them to stop, and gives up on those that do not. It returns when every outcome
// has been handed to the writer.
func (d *dispatcher) shutDown(grace time.Duration) error {
	d.draining.Store(true)
	close(d.drain)
	idle := func(*run) bool { return false }
	if d.restWithin(grace, idle) {
		return nil
	}
	d.cancelRuns(errShutdown)
	d.endRuns(errShutdown)
	// Those that ignore it are abandoned at the end of the grace, which has to be recorded.
	recorded := func(r *run) bool { return r.recorded.Load() }
	if d.restWithin(d.p.opts.CancelGrace+d.statementLimit(), recorded) && d.restWithin(0, idle) {
		return nil
	}
	d.stopWriting()
	d.mu.Lock()
	defer d.mu.Unlock()
	lost := 0
	for r := range d.runs {
		if !r.recorded.Load() {
			lost++
		}
	}
	return fmt.Errorf("%d handlers ignored the end of their context and are left behind; the outcomes of %d runs could not be recorded", len(d.runs), lost)
}

// restWithin waits until every run is one that may be left.
func (d *dispatcher) restWithin(limit time.Duration, left func(*run) bool) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	rest := func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		for r := range d.runs {
			if !left(r) {
				return false
			}
		}
		return true
	}
	for {
		if rest() {
			return true
		}
		select {
		case <-d.slotFree:
		case <-timer.C:
			return rest()
		}
	}
}
