package outbox

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorm-outbox/outbox/internal/dialect"
)

var someLane = dialect.Lane{Queue: "default", Priority: 2}

// A claim that was under way while a probe found something else must not say that nothing is left.
func TestBacklogBelievesTheLastProbe(t *testing.T) {
	var b backlog
	b.found([]dialect.Lane{someLane})
	_, _, probe := b.due()
	b.found([]dialect.Lane{someLane}) // as after a wake-up
	task := &TaskModel{ID: "x", Queue: "default", Priority: 2, RunAt: time.Now()}
	b.claimed([]claimed{{task: task}}, false, probe)
	if _, marks, _ := b.due(); !b.mayHaveMore() || len(marks) > 0 {
		t.Errorf("more %v, marks %v after a claim from before the probe", b.mayHaveMore(), marks)
	}
	_, _, probe = b.due()
	b.claimed([]claimed{{task: task}}, false, probe)
	if _, marks, _ := b.due(); b.mayHaveMore() || marks[someLane].ID != "x" {
		t.Errorf("more %v, marks %v after a claim from after it", b.mayHaveMore(), marks)
	}
}

// Rows that an exchange has claimed and that no run stands for yet look like strays.
func TestExchangesAndReclaimsExcludeEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, 0, false)
		p := s.addNode().plugin()
		defer s.pools[0].Close()
		d := p.newDispatcher(p.store)
		defer d.lapse.Stop()
		defer d.nextDue.Stop()
		defer d.stopWriting()
		defer d.endRuns(nil)
		d.backlog.found([]dialect.Lane{someLane})
		d.lastBeat = time.Now()
		d.doubt = time.Now()
		if n := d.mayExchange(nil); n != 0 {
			t.Errorf("an exchange may claim %d before the loop runs", n)
		}
		d.accept(true)
		n := d.mayExchange(nil)
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
		if n := d.mayExchange(nil); n != 0 {
			t.Errorf("an exchange may claim %d during a reclaim", n)
		}
	})
}
