package outbox

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorm-outbox/outbox/internal/dialect"
)

var someLane = dialect.Lane{Queue: "default", Priority: 2}

// Only where a claim that finds nothing costs no more than a look, and where it is known what to claim.
func TestExpectedTasksAreClaimedWithoutAProbe(t *testing.T) {
	for _, c := range []struct {
		name   string
		serial bool
		queues []string
		lanes  []dialect.Lane
		claim  bool
		probe  bool
	}{
		{"a lane", false, nil, []dialect.Lane{someLane}, true, false},
		{"a queue that is served", false, []string{"default"}, []dialect.Lane{someLane}, true, false},
		{"a queue that is not", false, []string{"mail"}, []dialect.Lane{someLane}, false, false},
		{"anywhere", false, nil, nil, false, true},
		{"a claim of several statements", true, nil, []dialect.Lane{someLane}, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := New(Options{Queues: c.queues})
			d := p.newDispatcher(&store{d: memDialect{m: newMemory(c.serial)}})
			defer d.lease.stop()
			d.expect(c.lanes)
			if claim := len(d.expected) > 0 && d.mayHaveMore(); claim != c.claim || len(d.woken) > 0 != c.probe {
				t.Errorf("a claim %v, a probe %v", claim, len(d.woken) > 0)
			}
		})
	}
}

// Rows that an exchange has claimed and that no run stands for yet look like strays.
func TestLoopReclaimsNothingDuringAnExchange(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newSim(t, 0, false)
		p := s.addNode().plugin()
		defer s.pools[0].Close()
		d := p.newDispatcher(p.store)
		defer d.lease.stop()
		defer d.nextDue.Stop()
		defer d.stopWriting()
		defer d.endRuns()
		d.backlog.found([]dialect.Lane{someLane})
		d.lease.lastBeat = time.Now()
		d.doubt = time.Now()
		if _, n := d.mayExchange(nil); n != 0 {
			t.Errorf("an exchange may claim %d before the loop runs", n)
		}
		d.accept(true)
		_, n := d.mayExchange(nil)
		if n != simSlots || d.room() != 0 {
			t.Fatalf("an exchange may claim %d, and leaves %d", n, d.room())
		}
		if d.mayReclaim() {
			t.Error("reclaims during an exchange")
		}
		d.exchanged(n)
		select {
		case <-d.reconcile:
		default:
			t.Error("the reclaim that had to wait is forgotten")
		}
		if !d.mayReclaim() {
			t.Error("does not reclaim after the exchange")
		}
		if _, n := d.mayExchange(nil); n != 0 {
			t.Errorf("an exchange may claim %d during a reclaim", n)
		}
	})
}

// duringExchange is a dispatcher with an exchange under way that may claim n.
func duringExchange(t *testing.T) (d *dispatcher, n int) {
	d = New(Options{}).newDispatcher(&store{d: memDialect{m: newMemory(false)}})
	t.Cleanup(func() { d.lease.stop() })
	d.accept(true)
	d.lease.lastBeat = time.Now()
	d.backlog.found([]dialect.Lane{someLane})
	_, n = d.mayExchange(nil)
	return d, n
}

// What an exchange has claimed is no run yet when it has freed the slots of its group.
func TestLoopShutdownWaitsForAnExchange(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d, n := duringExchange(t)
		const later = time.Second
		time.AfterFunc(later, func() { d.exchanged(n); signal(d.slotFree) })
		begun := time.Now()
		if !d.restWithin(time.Minute, (*run).leftBehind) || time.Since(begun) != later {
			t.Errorf("it rests after %v, and the exchange ends after %v", time.Since(begun), later)
		}
	})
}

// What looks like strays may be what an exchange has claimed; that it is not so any more when the exchange ends must not keep
// others from claiming for ever.
func TestLoopReclaimThatIsNotNeededAnyMore(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d, n := duringExchange(t)
		d.reconcileSoon(1)
		if d.mayReclaim() {
			t.Error("reclaims during an exchange")
		}
		d.reconcileSoon(0)
		d.exchanged(n)
		if d.mayReclaim() {
			t.Error("reclaims what nobody misses")
		}
		if _, n := d.mayExchange(nil); n == 0 {
			t.Error("no exchange may claim any more")
		}
	})
}

// The rows that a failed exchange had locked may have been passed over by another, whose marks are behind them.
func TestLoopProbesAfterAFailedExchange(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newSim(t, 0, false)
		n := s.addNode()
		n.fault = func(what string) memFault {
			if what == "COMMIT" || what == "BEGIN" {
				return memFault{err: errLost}
			}
			return memFault{}
		}
		p := n.plugin()
		defer s.pools[0].Close()
		d := p.newDispatcher(p.store)
		defer d.lease.stop()
		defer d.stopWriting()
		d.accept(true)
		d.lease.lastBeat = time.Now()
		d.backlog.found([]dialect.Lane{someLane})
		if written, err := d.exchange(nil); written || err == nil {
			t.Fatalf("written: %v, %v", written, err)
		}
		if len(d.woken) == 0 {
			t.Error("nobody looks at what is due")
		}
	})
}

// A task that this process has lost and claimed again may end twice in one group: only the last claim was written.
func TestLoopGroupWithTwoClaimsOfOneTask(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := New(Options{})
		told := map[int64]error{}
		p.opts.Hooks = []Hooks{finishHookFunc(func(t *TaskModel, f Finish) { told[t.Version] = f.Err })}
		d := p.newDispatcher(&store{d: memDialect{m: newMemory(false)}})
		defer d.lease.stop()
		var group []*pendingEnd
		for _, version := range []int64{2, 4} {
			r := d.newRun(claimed{task: &TaskModel{ID: "task", Func: "f", MaxAttempts: 1, Version: version}})
			r.told.Store(true)
			group = append(group, &pendingEnd{run: r, verdict: decide(r.task, ending{}, d.backoff)})
		}
		d.durable(group, fenced{ids: map[string]bool{"task": true}})
		if !errors.Is(told[2], ErrClaimLost) || told[4] != nil {
			t.Errorf("the claims were told %v", told)
		}
	})
}

type finishHookFunc func(*TaskModel, Finish)

func (finishHookFunc) OnCreate(context.Context, *TaskModel) error                { return nil }
func (finishHookFunc) OnStart(ctx context.Context, _ *TaskModel) context.Context { return ctx }
func (f finishHookFunc) OnFinish(_ context.Context, t *TaskModel, e Finish)      { f(t, e) }

// Between the end of a group's runs and the beginning of those that were claimed for its slots, these look free.
func TestLoopSlotsThatAGroupLeavesAreNotFree(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newSim(t, 0, false)
		for _, id := range []string{"a", "b", "c", "d"} {
			s.create(id, "plain", 0, nil)
		}
		n := s.addNode()
		n.fault = func(string) memFault { return memFault{} }
		p := n.plugin()
		defer s.pools[0].Close()
		d := p.newDispatcher(p.store)
		defer d.lease.stop()
		defer d.nextDue.Stop()
		defer d.stopWriting()
		defer d.endRuns()
		defer close(d.drain)
		d.finisher = newFinisher(simSlots)
		seen := -1
		p.opts.Hooks = append(p.opts.Hooks, finishHookFunc(func(*TaskModel, Finish) { seen = max(seen, d.room()) }))
		if err := d.register(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := d.probe(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got, _, err := d.claim(t.Context(), ""); got != simSlots || err != nil {
			t.Fatalf("%d are claimed, with the error %v", got, err)
		}
		ended := func() int {
			d.finisher.mu.Lock()
			defer d.finisher.mu.Unlock()
			return len(d.finisher.queue)
		}
		for ended() < simSlots {
			<-time.After(100 * time.Millisecond)
			d.beat(t.Context())
		}
		d.accept(true)
		group := d.finisher.take(d.running())
		if written, err := d.exchange(group); len(group) != simSlots || !written || err != nil {
			t.Fatalf("of %d outcomes the exchange wrote %v, with the error %v", len(group), written, err)
		}
		if seen != 0 {
			t.Errorf("%d slots looked free", seen)
		}
		synctest.Wait()
		if room := d.room(); room != simSlots-1 || d.reserved != 0 {
			t.Errorf("after it there is room for %d, and %d slots are reserved", room, d.reserved)
		}
	})
}
