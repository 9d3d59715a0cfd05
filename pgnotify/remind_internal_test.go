package pgnotify

import (
	"testing"
	"time"
)

// Reminders come at growing pauses. A task that needs one must not wait for the end of a pause that
// others began, nor does it put off one that comes soon.
func TestReminderComesSoon(t *testing.T) {
	for name, test := range map[string]struct{ armed, want time.Duration }{
		"a late one is brought forward": {time.Hour, time.Minute},
		"an early one stays":            {time.Second, time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			w := New(Options{Interval: time.Minute})
			now := time.Now()
			if !w.take(now, nil) {
				t.Fatal("the first task of an interval does not notify")
			}
			w.arm(now.Add(test.armed), nil)
			if w.take(now.Add(time.Millisecond), nil) {
				t.Fatal("a second task notifies in the same interval")
			}
			if !w.timer.Stop() {
				t.Fatal("no reminder will come")
			}
			if got := w.next.Sub(now); got != test.want {
				t.Errorf("the reminder comes after %v, want %v", got, test.want)
			}
		})
	}
}
