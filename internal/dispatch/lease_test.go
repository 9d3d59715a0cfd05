package dispatch

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorm-outbox/outbox/internal/store"
)

func TestLease(t *testing.T) {
	if racing {
		t.Skip("the race detector does not stand testing/synctest")
	}
	synctest.Test(t, func(t *testing.T) {
		expired := 0
		l := newLease(time.Second, func() { expired++ })
		defer l.stop()
		later := func(d time.Duration) {
			time.Sleep(d)
			synctest.Wait()
		}
		ours, theirs := "me", "another"
		owned := func() bool { return l.owns(&store.Task{ProcessID: &ours}) }
		if l.valid() || owned() {
			t.Error("it is valid before it has begun")
		}
		// What counts is when the statement was sent, not when its reply came.
		l.begin(ours, time.Now().Add(-600*time.Millisecond))
		if !l.valid() || !owned() || l.owner() != ours || l.owns(&store.Task{ProcessID: &theirs}) || l.owns(&store.Task{}) {
			t.Error("it is not this process's after its begin")
		}
		later(399 * time.Millisecond)
		if !l.valid() || expired != 0 {
			t.Error("it ran out too early")
		}
		later(time.Millisecond)
		if l.valid() || owned() || expired != 1 {
			t.Errorf("it has not run out; called %d times", expired)
		}
		sent := time.Now()
		if !l.renew(sent) || !l.valid() {
			t.Error("a heartbeat does not renew what had run out, or does not say that it had")
		}
		if l.renew(sent.Add(time.Millisecond)) || !l.beatenSince(sent) || l.beatenSince(sent.Add(time.Millisecond)) {
			t.Error("which heartbeat was the last is wrong")
		}
		later(900 * time.Millisecond)
		l.postponeExpiry()
		later(900 * time.Millisecond)
		if l.valid() || expired != 1 {
			t.Errorf("postponed, it is valid or was called; called %d times", expired)
		}
		later(100 * time.Millisecond)
		if expired != 2 {
			t.Errorf("called %d times", expired)
		}
	})
}
