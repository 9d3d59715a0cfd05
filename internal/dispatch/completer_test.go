package dispatch

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorm-outbox/outbox/internal/dialect"
	"github.com/gorm-outbox/outbox/internal/store"
)

var somePartition = dialect.Partition{Queue: "default", Priority: 2}

// Only where a claim that finds nothing costs no more than a look, and where it is known what to
// claim.
func TestExpectedTasksAreClaimedWithoutAPoll(t *testing.T) {
	for _, c := range []struct {
		name       string
		serial     bool
		queues     []string
		partitions []dialect.Partition
		claim      bool
		probe      bool
	}{
		{"a partition", false, nil, []dialect.Partition{somePartition}, true, false},
		{"a queue that is served", false, []string{"default"}, []dialect.Partition{somePartition}, true, false},
		{"a queue that is not", false, []string{"mail"}, []dialect.Partition{somePartition}, false, false},
		{"anywhere", false, nil, nil, false, true},
		{"a claim of several statements", true, nil, []dialect.Partition{somePartition}, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := memoryConfig(c.serial)
			cfg.Queues = c.queues
			d := cfg.start(t)
			d.expect(c.partitions)
			why := d.wakeups.take()
			claim, poll := why&knownDue != 0 && d.claimer.mayHaveMore(), why&maybeDue != 0
			if claim != c.claim || poll != c.probe {
				t.Errorf("a claim %v, a poll %v", claim, poll)
			}
		})
	}
}

// Rows that an exchange has claimed and that no run stands for yet look like strays.
func TestLoopRecoversNothingDuringARefill(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newSim(t, 0, false)
		p := s.addNode().config()
		defer s.pools[0].Close()
		d := p.start(t)
		defer d.endRuns()
		d.claimer.found([]dialect.Partition{somePartition})
		d.lease.lastBeat = time.Now()
		d.recovery.claimReplyLost()
		if _, n := d.completer.reserve(nil); n != 0 {
			t.Errorf("an exchange may claim %d before the loop runs", n)
		}
		d.recovery.allowRefills(true)
		_, n := d.completer.reserve(nil)
		if n != simSlots || d.slots.free() != 0 {
			t.Fatalf("an exchange may claim %d, and leaves %d", n, d.slots.free())
		}
		if d.recovery.begin() {
			t.Error("reclaims during an exchange")
		}
		d.completer.refilled(n)
		if d.wakeups.take()&claimsUnknown == 0 {
			t.Error("the recovery that had to wait is forgotten")
		}
		if !d.recovery.begin() {
			t.Error("does not reclaim after the exchange")
		}
		if _, n := d.completer.reserve(nil); n != 0 {
			t.Errorf("an exchange may claim %d during a reclaim", n)
		}
	})
}

// duringRefill is a dispatcher with an exchange under way that may claim n.
func duringRefill(t *testing.T) (d *dispatcher, n int) {
	d = memoryConfig(false).start(t)
	d.recovery.allowRefills(true)
	d.lease.lastBeat = time.Now()
	d.claimer.found([]dialect.Partition{somePartition})
	_, n = d.completer.reserve(nil)
	return d, n
}

// What an exchange has claimed is no run yet when it has freed the slots of its group.
func TestLoopShutdownWaitsForARefill(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d, n := duringRefill(t)
		const later = time.Second
		time.AfterFunc(later, func() { d.completer.refilled(n); d.wakeups.add(slotFreed) })
		begun := time.Now()
		if !d.slots.waitIdle(time.Minute, d.wakeups, (*run).leftBehind) || time.Since(begun) != later {
			t.Errorf("it rests after %v, and the exchange ends after %v", time.Since(begun), later)
		}
	})
}

// What looks like strays may be what an exchange has claimed; that it is not so any more when the
// exchange ends must not keep others from claiming for ever.
func TestLoopRecoveryThatIsNotNeededAnyMore(t *testing.T) {
	bubble(t, func(t *testing.T) {
		d, n := duringRefill(t)
		d.recovery.compare(1)
		if d.recovery.begin() {
			t.Error("reclaims during an exchange")
		}
		d.recovery.compare(0)
		d.completer.refilled(n)
		if d.recovery.begin() {
			t.Error("reclaims what nobody misses")
		}
		if _, n := d.completer.reserve(nil); n == 0 {
			t.Error("no exchange may claim any more")
		}
	})
}

// The rows that a failed exchange had locked may have been passed over by another, whose marks are
// behind them.
func TestLoopPollsAfterAFailedRefill(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newSim(t, 0, false)
		n := s.addNode()
		n.fault = func(what string) memFault {
			if what == "COMMIT" || what == "BEGIN" {
				return memFault{err: errLost}
			}
			return memFault{}
		}
		p := n.config()
		defer s.pools[0].Close()
		d := p.start(t)
		d.recovery.allowRefills(true)
		d.lease.lastBeat = time.Now()
		d.claimer.found([]dialect.Partition{somePartition})
		if written, err := d.completer.completeAndClaim(nil); written || err == nil {
			t.Fatalf("written: %v, %v", written, err)
		}
		if d.wakeups.take()&maybeDue == 0 {
			t.Error("nobody looks at what is due")
		}
	})
}

// A task that this process has lost and claimed again may end twice in one group: only the last
// claim was written.
func TestLoopGroupWithTwoClaimsOfOneTask(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := memoryConfig(false)
		told := map[int64]error{}
		p.Observer = endFunc(func(t *store.Task, e End) { told[t.Version] = e.Err })
		d := p.start(t)
		var group []*completion
		for _, version := range []int64{2, 4} {
			r := d.newRun(store.Claimed{Task: &store.Task{ID: "task", Func: "f", MaxAttempts: 1, Version: version}})
			r.told.Store(true)
			group = append(group, &completion{run: r, transition: decide(r.task, result{}, p.Backoff)})
		}
		d.completer.settle(group, store.Let{IDs: map[string]bool{"task": true}})
		if !errors.Is(told[2], ErrClaimLost) || told[4] != nil {
			t.Errorf("the claims were told %v", told)
		}
	})
}

// Between the end of a group's runs and the beginning of those that were claimed for its slots,
// these look free.
func TestLoopSlotsThatAGroupLeavesAreNotFree(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newSim(t, 0, false)
		for _, id := range []string{"a", "b", "c", "d"} {
			s.create(id, "plain", 0, nil)
		}
		n := s.addNode()
		n.fault = func(string) memFault { return memFault{} }
		p := n.config()
		defer s.pools[0].Close()
		d := p.start(t)
		defer d.endRuns()
		defer close(d.drain)
		d.completer.full = simSlots
		seen := -1
		d.cfg.Observer = endFunc(func(*store.Task, End) { seen = max(seen, d.slots.free()) })
		if err := d.register(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := d.pollOnce(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got, _, err := d.claimer.claim(t.Context(), ""); got != simSlots || err != nil {
			t.Fatalf("%d are claimed, with the error %v", got, err)
		}
		ended := func() int {
			d.completer.mu.Lock()
			defer d.completer.mu.Unlock()
			return len(d.completer.queue)
		}
		for ended() < simSlots {
			<-time.After(100 * time.Millisecond)
			d.beat(t.Context())
		}
		d.recovery.allowRefills(true)
		group := d.completer.take()
		if written, err := d.completer.completeAndClaim(group); len(group) != simSlots || !written || err != nil {
			t.Fatalf("of %d outcomes the exchange wrote %v, with the error %v", len(group), written, err)
		}
		if seen != 0 {
			t.Errorf("%d slots looked free", seen)
		}
		synctest.Wait()
		if room := d.slots.free(); room != simSlots-1 || d.slots.reserved != 0 {
			t.Errorf("after it there is room for %d, and %d slots are reserved", room, d.slots.reserved)
		}
	})
}
