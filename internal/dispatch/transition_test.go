package dispatch

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/gorm-outbox/outbox/internal/store"
)

// decided is a transition in one line.
func decided(v transition) string {
	switch {
	case v.outcome != nil && v.requeue != nil:
		return "both"
	case v.outcome != nil:
		o := v.outcome
		s := o.Status
		if o.Reason != "" {
			s += "/" + o.Reason
		}
		if o.Result != nil {
			s += " result=" + *o.Result
		}
		if o.Error != nil {
			s += " error=" + *o.Error
		}
		if o.Crashes != 0 {
			s += fmt.Sprintf(" crashes+%d", o.Crashes)
		}
		return s
	}
	r := v.requeue
	s := "again in " + v.next.String()
	if r.DelayUS != v.next.Microseconds() {
		s += fmt.Sprintf(" (but %d us)", r.DelayUS)
	}
	if r.Uncounted != 0 {
		s += " uncounted"
	}
	if r.Crashes != 0 {
		s += fmt.Sprintf(" crashes+%d", r.Crashes)
	}
	if r.Errors != nil {
		s += " kept"
	}
	return s
}

func TestDecide(t *testing.T) {
	failure := errors.New("boom")
	failed := result{reason: ReasonFailed, err: failure, text: "boom"}
	with := func(r string) result { return result{reason: r, err: failure, text: "boom"} }
	one := `{"n":1}`
	last := store.Task{Attempt: 1, MaxAttempts: 1}
	left := store.Task{Attempt: 1, MaxAttempts: 3}
	second := store.Task{Attempt: 2, MaxAttempts: 3}
	repeatable := store.Task{Attempt: 1, MaxAttempts: 1, Repeatable: true}
	misfitted := "[" + strings.Repeat(`{"reason":"bad_args"},`, 11) + `{"reason":"bad_args"}]`
	crashed := store.Task{Attempt: 3, MaxAttempts: 1, Uncounted: 2, Crashes: 2, Repeatable: true}
	for _, c := range []struct {
		name string
		task store.Task
		end  result
		want string
	}{
		{"success", last, result{}, "success"},
		{"success with a result", last, result{value: &one}, `success result={"n":1}`},
		{"success whose result is not stored", left, result{reason: ReasonBadResult, text: "too large"}, "success/bad_result error=too large"},

		{"failed, no retry by default", last, failed, "error/failed error=boom"},
		{"failed with attempts left", left, failed, "again in 1m0s kept"},
		{"failed again", second, failed, "again in 2m0s kept"},
		{"failed for the last time", store.Task{Attempt: 3, MaxAttempts: 3}, failed, "error/failed error=boom"},
		{"failed, uncounted runs do not count", store.Task{Attempt: 5, Uncounted: 4, MaxAttempts: 2}, failed, "again in 1m0s kept"},
		{"failed, uncounted runs do not count at the end", store.Task{Attempt: 5, Uncounted: 3, MaxAttempts: 2}, failed, "error/failed error=boom"},
		{"failed, MaxAttempts was lowered by hand", store.Task{Attempt: 5, MaxAttempts: 2}, failed, "error/failed error=boom"},
		{"failed without a text", last, result{reason: ReasonFailed, err: failure}, "error/failed"},
		{"failed, repeatable", repeatable, failed, "error/failed error=boom"},
		{"permanent", left, result{reason: ReasonPermanent, err: &PermanentError{failure}, text: "boom", final: true}, "error/permanent error=boom"},

		{"panic", last, with(ReasonPanic), "error/panic error=boom"},
		{"panic with attempts left", left, with(ReasonPanic), "again in 1m0s kept"},
		{"goexit", left, with(ReasonGoexit), "again in 1m0s kept"},
		{"transaction ended behind its back", left, with(ReasonTransaction), "again in 1m0s kept"},
		{"bad arguments are final", left, result{reason: ReasonBadArgs, err: failure, text: "boom", final: true}, "error/bad_args error=boom"},

		{"timeout, the handler returned", left, with(ReasonTimeout), "again in 1m0s kept"},
		{"timeout, the handler returned for the last time", last, with(ReasonTimeout), "error/timeout error=boom"},
		{"timeout, the handler did not return", left, result{reason: ReasonTimeout, err: failure, text: "boom", final: true}, "error/timeout error=boom"},

		{"interrupted counts", last, with(ReasonInterrupted), "error/interrupted error=boom"},
		{"interrupted with attempts left", left, with(ReasonInterrupted), "again in 1m0s kept"},
		{"interrupted, repeatable", repeatable, with(ReasonInterrupted), "again in 1m0s uncounted crashes+1 kept"},
		{"interrupted, repeatable, a second time", store.Task{Attempt: 2, MaxAttempts: 1, Uncounted: 1, Crashes: 1, Repeatable: true},
			with(ReasonInterrupted), "again in 2m0s uncounted crashes+1 kept"},
		{"interrupted, repeatable, at the crash cap", crashed, with(ReasonInterrupted), "error/interrupted error=boom crashes+1"},
		{"interrupted, repeatable, at the crash cap with attempts left", store.Task{Attempt: 3, MaxAttempts: 9, Uncounted: 2, Crashes: 2, Repeatable: true},
			with(ReasonInterrupted), "error/interrupted error=boom crashes+1"},
		{"a crashed one that succeeds", crashed, result{}, "success"},

		{"a transaction that does not end", last, result{reason: ReasonTransaction, text: "boom", crash: true}, "again in 1m0s uncounted crashes+1 kept"},
		{"a transaction that does not end, at the crash cap", crashed, result{reason: ReasonTransaction, text: "boom", crash: true},
			"error/transaction error=boom crashes+1"},
		{"arguments for another process, but not for ever", store.Task{Attempt: 13, Uncounted: 12, MaxAttempts: 1, Errors: &misfitted},
			result{reason: ReasonBadArgs, text: "boom", elsewhere: true, final: true}, "error/bad_args error=boom"},

		{"given back", last, result{giveBack: true}, "again in 0s uncounted"},
		{"given back for later", last, result{giveBack: true, delay: time.Minute, err: failure}, "again in 1m0s uncounted"},

		{"snooze", last, result{reason: ReasonFailed, err: &SnoozeError{5 * time.Second}}, "again in 5s uncounted"},
		{"snooze, wrapped", last, result{reason: ReasonFailed, err: fmt.Errorf("later: %w", &SnoozeError{time.Second})}, "again in 1s uncounted"},
		{"snooze, negative", last, result{reason: ReasonFailed, err: &SnoozeError{-time.Second}}, "again in 0s uncounted"},
		{"permanent beats snooze", left, result{reason: ReasonPermanent, err: &PermanentError{&SnoozeError{time.Second}}, text: "x", final: true}, "error/permanent error=x"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.task.ID, c.task.Version = "id", 7
			v := decide(&c.task, c.end, func(n int) time.Duration { return time.Duration(n) * time.Minute })
			if got := decided(v); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
			if o := v.outcome; o != nil && (o.ID != "id" || o.Version == nil || *o.Version != 7) {
				t.Errorf("no fence: %+v", o)
			}
			if r := v.requeue; r != nil && (r.ID != "id" || r.Version != 7) {
				t.Errorf("no fence: %+v", r)
			}
		})
	}
	t.Run("a negative backoff is none", func(t *testing.T) {
		v := decide(&left, failed, func(int) time.Duration { return -time.Hour })
		if got := decided(v); got != "again in 0s kept" {
			t.Errorf("got %s", got)
		}
	})
}

// However runs end, the counted ones never exceed MaxAttempts, and crashes end too.
func TestDecideTerminates(t *testing.T) {
	endings := []result{
		{reason: ReasonFailed, err: errors.New("x"), text: "x"}, {reason: ReasonInterrupted, err: errInterrupted, text: "x"},
		{reason: ReasonPanic, err: errors.New("x"), text: "x"},
	}
	for _, repeatable := range []bool{false, true} {
		for pattern := range 243 {
			task := store.Task{MaxAttempts: 3, Repeatable: repeatable}
			runs, counted := 0, 0
			for done := false; !done; runs++ {
				task.Attempt++
				n := pattern
				for range runs {
					n /= 3
				}
				e := endings[n%3]
				if !repeatable || e.reason != ReasonInterrupted {
					counted++
				}
				v := decide(&task, e, DefaultBackoff)
				if done = v.outcome != nil; !done {
					task.Uncounted += v.requeue.Uncounted
					task.Crashes += v.requeue.Crashes
				}
				if task.Attempt-task.Uncounted > task.MaxAttempts || counted > 3 || runs > 5 {
					t.Fatalf("pattern %d: %d runs, %d counted", pattern, runs+1, counted)
				}
			}
		}
	}
}

func TestKeptAttempts(t *testing.T) {
	task := store.Task{MaxAttempts: 1000}
	for i := 1; i <= 50; i++ {
		at := time.Date(2026, 1, 1, 0, 0, i, 0, time.UTC)
		task.Attempt, task.StartedAt = i, &at
		before := task.Errors
		text := failed(&task, result{reason: ReasonFailed, text: strings.Repeat("é", maxKeptError)})
		if task.Errors != before {
			t.Fatal("the task itself was changed")
		}
		if task.Errors = text; len(attempts(text)) == 0 {
			t.Fatalf("got %v", text)
		}
	}
	kept := attempts(task.Errors)
	if len(kept) != maxKeptAttempts {
		t.Fatalf("%d are kept", len(kept))
	}
	for i, a := range kept {
		want := 50 - maxKeptAttempts + 1 + i
		if i == 0 {
			want = 1
		}
		if a.Attempt != want || a.At.Second() != want || a.Reason != ReasonFailed || len(a.Error) > maxKeptError || !strings.HasSuffix(a.Error, "(cut)") {
			t.Errorf("%d: got attempt %d at %v, %s, %d bytes", i, a.Attempt, a.At, a.Reason, len(a.Error))
		}
	}
}
