package dispatch

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorm-outbox/outbox/internal/dialect"
	"github.com/gorm-outbox/outbox/internal/store"
)

const (
	simSlots     = 3
	simHeartbeat = 2 * time.Second
	simLimit     = 3 * simHeartbeat
	simStatement = simLimit / 3 // what the dispatcher allows one statement
	simLease     = simLimit * 2 / 3
	simGrace     = 3 * time.Second
	simCancel    = time.Second
	simFaults    = 25 * time.Second // so long things go wrong
	simStray     = 20 * time.Second // so long a handler may ignore its context
	// The loop may be in two claims, which are not cut short; then the graces, the recording, and
	// the farewell.
	simStop = 2*simStatement + simGrace + simCancel + simStatement + simStatement + 100*time.Millisecond
)

// sim is one seed.
type sim struct {
	t     *testing.T
	seed  int
	log   *slog.Logger
	m     *memory
	nodes []*simNode
	heal  time.Time

	mu    sync.Mutex
	tasks map[string]*simTask
	gate  int
	open  chan struct{}
	pools []*sql.DB
}

type simTask struct {
	runs, snoozed, succeeded int
	ended                    map[simRun]int // how often hooks were told
}

type simRun struct {
	node    *simNode
	attempt int
}

// simHooks count the ends of runs.
type simHooks struct{ n *simNode }

func (simHooks) Started(context.Context, any) context.Context { return nil }
func (h simHooks) Ended(_ context.Context, model any, f End) {
	task := model.(*store.Task)
	if f.Reason == ReasonPanic && f.Err.Error() != "panic: as the seed has it" {
		h.n.s.wrong("%s: %v", task.ID, f.Err)
	}
	h.n.s.m.mu.Lock()
	past, over := h.n.s.m.rows["history "+task.ID].(store.History)
	h.n.s.m.mu.Unlock()
	if over && errors.Is(f.Err, ErrClaimLost) && past.Version == task.Version && past.Reason != ReasonInterrupted {
		h.n.s.wrong("%s: its outcome was recorded, but is said to be refused", task.ID)
	}
	h.n.s.mu.Lock()
	defer h.n.s.mu.Unlock()
	h.n.s.tasks[task.ID].ended[simRun{h.n, task.Attempt}]++
}

// simNode is where one process runs after another.
type simNode struct {
	s      *sim
	name   int
	counts map[string]int // statements by kind
	cuts   []simCut
	killed bool // this life's connections
	fault  func(what string) memFault
}

// simLife is one process of a node.
type simLife struct {
	*simNode
	executing int              // handlers
	returned  map[string]int64 // tasks whose handlers have returned, at the version of their claim
}

// simCut keeps some of a node's statements from the database.
type simCut struct {
	from, to time.Time
	only     string // a word of the statements; empty means all
	hangs    bool
}

// newSim is an empty world.
func newSim(t *testing.T, seed int, serial bool) *sim {
	s := &sim{t: t, seed: seed, log: slog.New(slog.DiscardHandler), m: newMemory(serial), heal: time.Now().Add(simFaults),
		tasks: map[string]*simTask{}, open: make(chan struct{})}
	s.m.wrong = s.wrong
	s.m.buried = func(p memProcess) {
		if silent := time.Since(p.at); silent < simLimit {
			s.wrong("process %s was buried %v after its last heartbeat", p.id, silent)
		}
	}
	return s
}

func (s *sim) addNode() *simNode {
	n := &simNode{s: s, name: len(s.nodes), counts: map[string]int{}}
	n.fault = n.fate
	s.nodes = append(s.nodes, n)
	return n
}

// simOf is the world of a seed.
func simOf(t *testing.T, seed int) *sim {
	rng := (&sim{seed: seed}).rng("world")
	s := newSim(t, seed, rng.IntN(2) == 0)
	begun := time.Now()
	for range 1 + rng.IntN(3) {
		n := s.addNode()
		for range rng.IntN(3) {
			from := begun.Add(rng.N(simFaults))
			n.cuts = append(n.cuts, simCut{
				from: from, to: from.Add(rng.N(2 * simLimit)), hangs: rng.IntN(2) == 0,
				only: []string{"", "", "beat_at", "MOVE", "COMMIT", "POLL"}[rng.IntN(6)],
			})
		}
	}
	for i := range 5 + rng.IntN(25) {
		s.create(fmt.Sprint("task-", i), []string{"plain", "idempotent", "transactional"}[rng.IntN(3)], rng.N(simFaults), func(m *store.Task) {
			m.Priority, m.MaxAttempts = 1+rng.IntN(3), 1+rng.IntN(3)
			if rng.IntN(4) == 0 {
				m.TimeoutMS = int64(500 + rng.IntN(5000))
			}
		})
	}
	return s
}

// rng gives choices that depend on the seed and a place only.
func (s *sim) rng(place ...any) simRand {
	h := fnv.New64a()
	fmt.Fprint(h, place...)
	return simRand{rand.New(rand.NewPCG(uint64(s.seed), h.Sum64()))}
}

type simRand struct{ *rand.Rand }

func (r simRand) N(d time.Duration) time.Duration { return time.Duration(r.Int64N(int64(d))) }

func (s *sim) wrong(format string, args ...any) {
	s.t.Errorf("seed %d: "+format, append([]any{s.seed}, args...)...)
}

func (s *sim) create(id, path string, after time.Duration, more func(*store.Task)) {
	m := store.Task{ID: id, Func: path, Queue: "default", Priority: 2, RunAt: time.Now().Add(after), State: store.Pending, MaxAttempts: 1, Version: 1}
	if more != nil {
		more(&m)
	}
	s.tasks[id] = &simTask{ended: map[simRun]int{}}
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	s.m.rows["task "+id] = m
}

func (s *sim) run() {
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for _, n := range s.nodes {
		wg.Go(func() { n.live(stop) })
	}
	s.eventually("everything ends", func() bool { return !time.Now().Before(s.heal) && s.waiting() == 0 })
	// Were a slot leaked, they would not all run at once.
	s.mu.Lock()
	for i := range simSlots * len(s.nodes) {
		s.create(fmt.Sprint("gate-", i), "gate", 0, nil)
	}
	s.mu.Unlock()
	s.eventually("every slot is taken at once", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.gate == simSlots*len(s.nodes)
	})
	close(s.open)
	s.eventually("every slot is free again", func() bool { return s.waiting() == 0 })
	close(stop)
	wg.Wait()
	<-time.After(simStray + simLimit) // for handlers that were left behind
	for _, pool := range s.pools {
		if err := pool.Close(); err != nil {
			s.wrong("close: %v", err)
		}
	}
	s.check()
}

func (s *sim) eventually(what string, holds func() bool) {
	limit := time.Now().Add(simFaults + 3*time.Minute)
	for !holds() {
		if time.Now().After(limit) {
			tx := s.m.begin()
			s.m.mu.Lock()
			left := fmt.Sprintf("%+v\n%+v", tasks(tx), processes(tx))
			s.m.mu.Unlock()
			s.t.Fatalf("seed %d: not in time: %s\n%s", s.seed, what, left)
		}
		<-time.After(100 * time.Millisecond)
	}
}

func (s *sim) waiting() int {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	return len(tasks(s.m.begin()))
}

func (s *sim) check() {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, task := range s.tasks {
		h, there := s.m.rows["history "+id].(store.History)
		if !there {
			s.wrong("%s has no history", id)
			continue
		}
		effects, _ := s.m.rows["effect "+id].(int)
		switch {
		case h.Func == "transactional" && (h.Status == store.Success) != (effects == 1), effects > 1:
			s.wrong("%s ended as %s with %d effects", id, h.Status, effects)
		case h.Status == store.Success && task.succeeded == 0:
			s.wrong("%s ended as success, but never did", id)
		case h.Func == "plain" && task.runs-task.snoozed > h.MaxAttempts:
			s.wrong("%s ran %d times, %d of them snoozed, of %d allowed: %+v", id, task.runs, task.snoozed, h.MaxAttempts, h)
		}
		for run, n := range task.ended {
			if n > 1 {
				s.wrong("%s, attempt %d of node %d: OnFinish was called %d times", id, run.attempt, run.node.name, n)
			}
		}
	}
}

// live runs one process after another until stop is closed.
func (n *simNode) live(stop <-chan struct{}) {
	rng := n.s.rng("lives", n.name)
	for life := 0; ; life++ {
		n.s.mu.Lock()
		n.killed = false
		cfg := n.config()
		n.s.mu.Unlock()
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- Run(ctx, *cfg) }()
		span := time.Hour
		if left := time.Until(n.s.heal); left > 0 {
			if span = rng.N(2 * simFaults); span > left {
				span = time.Hour
			}
		}
		select {
		case <-done: // it could not start
			<-time.After(time.Second)
			cancel()
			continue
		case <-stop:
		case <-time.After(span):
			n.s.mu.Lock()
			n.killed = rng.IntN(2) == 0
			n.s.mu.Unlock()
		}
		begun := time.Now()
		cancel()
		err := <-done
		if took := time.Since(begun); took > simStop {
			n.s.wrong("node %d: Run returned %v after its context, with %v", n.name, took, err)
		}
		select {
		case <-stop:
			if err != nil {
				n.s.wrong("node %d: an idle Run ended with %v", n.name, err)
			}
			return
		default:
		}
	}
}

func (n *simNode) config() *Config {
	s, life := n.s, &simLife{simNode: n, returned: map[string]int64{}}
	pool := sql.OpenDB(&memNode{m: s.m, fault: n.fault})
	s.pools = append(s.pools, pool)
	cfg := config(store.With(pool, memDialect{m: s.m, claims: life.claims, gone: new(sync.Map)}))
	cfg.Log, cfg.Concurrency, cfg.Heartbeat, cfg.HeartbeatLimit = s.log.With("node", n.name), simSlots, simHeartbeat, simLimit
	cfg.ShutdownGrace, cfg.CancelGrace, cfg.Observer = simGrace, simCancel, simHooks{n}
	cfg.Backoff = func(int) time.Duration { return 200 * time.Millisecond }
	cfg.MinGroup = 1 + s.rng("groups", n.name).IntN(simSlots) // with one row two are often written at a time
	plain := func(ctx context.Context) error { return life.handle(ctx, nil) }
	idempotent := ordinary(plain)
	idempotent.Repeatable = true
	cfg.Functions = map[string]*Function{
		"plain": ordinary(plain), "idempotent": idempotent, "transactional": inTransaction(life.handle),
		"gate": ordinary(func(ctx context.Context) error {
			task := taskFrom(ctx)
			s.mu.Lock()
			s.gate++
			s.tasks[task.ID].succeeded++
			s.mu.Unlock()
			<-s.open
			return nil
		}),
	}
	return cfg
}

// fate decides what becomes of a node's next statement.
func (n *simNode) fate(what string) (f memFault) {
	n.s.mu.Lock()
	defer n.s.mu.Unlock()
	now := time.Now()
	if n.killed {
		return memFault{err: errLost}
	}
	if !now.Before(n.s.heal) {
		return f
	}
	for _, c := range n.cuts {
		if now.Before(c.from) || !now.Before(c.to) || !strings.Contains(what, c.only) {
			continue
		}
		if c.hangs {
			f.before = c.to.Sub(now)
		}
		f.err = errLost
		return f
	}
	n.counts[what]++
	rng := n.s.rng(n.name, what, n.counts[what])
	f.before, f.after = rng.N(10*time.Millisecond), rng.N(10*time.Millisecond)
	switch p := rng.IntN(100); {
	case p < 4:
		f.before = rng.N(2 * simStatement)
	case p < 8:
		f.after = rng.N(2 * simStatement)
	case p < 11:
		f.err = errLost
	case p < 14:
		f.err, f.executed = errLost, true
	case p < 16:
		f.err, f.executed, f.late = errLost, true, rng.N(2*simStatement)
	case p < 18:
		f.err = errBusy
	case p < 20 && (what == "COMMIT" || what == "EFFECT"):
		f.err = errRetry
	}
	return f
}

// claims looks at a claim when it is sent.
func (n *simLife) claims(q dialect.ClaimParams, gone map[string]bool) {
	n.s.m.mu.Lock()
	defer n.s.m.mu.Unlock()
	n.s.mu.Lock()
	defer n.s.mu.Unlock()
	tx := n.s.m.begin()
	taken := n.executing
	for id, version := range n.returned {
		if t, there := tx.get("task " + id).(store.Task); !gone[id] && there && t.State == store.Running && t.Version == version {
			taken++ // its outcome is not durable
		}
	}
	if taken+q.Limit > simSlots {
		n.s.wrong("node %d claims %d while %d of its %d slots are taken", n.name, q.Limit, taken, simSlots)
	}
	// It may have been in time when it asked what is due, and has been slow since then, twice.
	if p, there := tx.get("process " + q.Process).(memProcess); there && time.Since(p.at) > simLease+2*simStatement {
		n.s.wrong("node %d claims, %v after its last heartbeat", n.name, time.Since(p.at))
	}
}

var errSim = errors.New("as the seed has it")

// handle is every handler.
func (n *simLife) handle(ctx context.Context, tx *Tx) (err error) {
	s := n.s
	task := taskFrom(ctx)
	n.silent(ctx, task)
	if time.Now().Before(task.RunAt) {
		s.wrong("%s runs %v too early", task.ID, time.Until(task.RunAt))
	}
	s.mu.Lock()
	n.executing++
	s.tasks[task.ID].runs++
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		n.executing--
		if tx == nil {
			n.returned[task.ID] = task.Version
		}
		var snooze *SnoozeError
		if errors.As(err, &snooze) {
			s.tasks[task.ID].snoozed++
		} else if err == nil {
			s.tasks[task.ID].succeeded++
		}
	}()
	rng := s.rng("run", task.ID, task.Attempt)
	if tx != nil {
		if _, err := tx.ExecContext(ctx, "EFFECT", task.ID); err != nil {
			return err
		}
	}
	if err := n.work(ctx, task, rng); err != nil {
		return err
	}
	switch p := rng.IntN(20); {
	case p < 3:
		return errSim
	case p < 4:
		return &PermanentError{errSim}
	case p < 6:
		return &SnoozeError{rng.N(3 * time.Second)}
	case p < 7:
		err = errSim // for the deferred function
		panic("as the seed has it")
	}
	return nil
}

// work takes its time.
func (n *simNode) work(ctx context.Context, task *store.Task, rng simRand) error {
	length := []time.Duration{0, 0, rng.N(time.Second), rng.N(5 * time.Second), rng.N(simStray)}[rng.IntN(5)]
	obeys := rng.IntN(5) > 0
	for end := time.Now().Add(length); time.Now().Before(end); {
		if err := dialect.Wait(ctx, min(time.Until(end), 250*time.Millisecond)); err != nil {
			if obeys {
				return err
			}
			<-time.After(time.Until(end))
			return nil
		}
		if n.silent(ctx, task) {
			return nil
		}
	}
	return nil
}

// silent reports that a handler was not told that its process may be declared dead. A serial
// database's lock keeps heartbeats back, but also those who would take over.
func (n *simNode) silent(ctx context.Context, task *store.Task) bool {
	n.s.m.mu.Lock()
	p, there := n.s.m.rows["process "+*task.ProcessID].(memProcess)
	n.s.m.mu.Unlock()
	silent := time.Since(p.at)
	if !there || silent <= simLease || ctx.Err() != nil || n.s.m.serial {
		return false
	}
	n.s.wrong("%s is not told that its process has been silent for %v", task.ID, silent)
	return true
}
