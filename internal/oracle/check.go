package oracle

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/gorm-outbox/outbox"
)

// Question says what to check.
type Question struct {
	Created []Expect // the tasks to check
	All     bool     // Created are all tasks: any other that is stored or ran is a phantom
	// The faults are over and the dispatchers have had their time: no task may be running or due
	// (H).
	Rest    bool
	Stopped bool // every dispatcher has stopped: no process row may be left (H)
}

// Violation is a broken promise.
type Violation struct {
	Invariant Invariant
	Task      string // empty for a process row
	What      string // one sentence
	Story     string // everything known about the task, in the order of time, one event a line
}

func (v Violation) String() string {
	return fmt.Sprintf("%s: %s\n%s", v.Invariant, v.What, v.Story)
}

// Check returns every violation, ordered by task. It may be called at any time, also while tasks
// run. An error means that the database could not be read.
func (o *Oracle) Check(ctx context.Context, q Question) ([]Violation, error) {
	ids := make([]string, len(q.Created))
	for i, e := range q.Created {
		ids[i] = e.Task
	}
	s, err := o.read(ctx, ids, q.All)
	if err != nil {
		return nil, fmt.Errorf("oracle: check: %w", err)
	}
	var out []Violation
	known := make(map[string]bool, len(ids))
	for _, e := range q.Created {
		known[e.Task] = true
		out = append(out, o.judge(e, s.of(e.Task), s, q.Rest)...)
	}
	for id, f := range s.facts {
		if !known[id] {
			out = append(out, Violation{Phantom, id, "nobody is known to have created it", story(nil, f)})
		}
	}
	if q.Stopped {
		for _, p := range s.processes {
			out = append(out, Violation{Invariant: Health, What: fmt.Sprintf(
				"the row of process %s (pid %d) is left, %d heartbeats, the last at %s", p.ID, p.PID, p.Beats, stamp(p.BeatAt))})
		}
	}
	slices.SortStableFunc(out, func(a, b Violation) int {
		return cmp.Or(strings.Compare(a.Task, b.Task), strings.Compare(string(a.Invariant), string(b.Invariant)))
	})
	return out, nil
}

// judge checks one task.
func (o *Oracle) judge(e Expect, f *facts, s *snapshot, rest bool) (out []Violation) {
	violated := func(i Invariant, format string, args ...any) {
		out = append(out, Violation{i, e.Task, fmt.Sprintf(format, args...), story(&e, f)})
	}
	stored := f.task != nil || f.past != nil
	fate := e.Fate
	if fate == Unknown {
		fate = RolledBack
		if stored {
			fate = Committed
		}
	}
	if fate == RolledBack {
		if stored {
			violated(Phantom, "its creation was rolled back, but it is stored")
		}
		if n := len(f.runs) + len(f.effects); n > 0 {
			violated(Phantom, "its creation was rolled back (%s), but %d runs and effects were recorded", e.Fate, n)
		}
		return out
	}

	switch {
	case !stored:
		violated(Loss, "it was committed, but is neither a task nor in history")
	case f.task != nil && f.past != nil:
		violated(Fence, "it is in history and still a task")
	case f.past != nil && f.past.Status == outbox.StatusSuccess && !slices.ContainsFunc(f.runs, func(r Run) bool {
		return r.Attempt == f.past.Attempt
	}):
		violated(Loss, "history says success of attempt %d, which never ran", f.past.Attempt)
	}
	if f.past != nil {
		o.judgeHistory(f, violated)
	}
	if e.Kind == Transactional {
		judgeEffects(f, violated)
	}
	judgeRuns(e, f, violated)
	if rest && f.task != nil && f.past == nil {
		if f.task.State == outbox.StateRunning {
			violated(Health, "it is still running")
		} else if f.task.State == outbox.StatePending && !f.task.RunAt.After(s.now) {
			violated(Health, "it is still pending, due for %v", s.now.Sub(f.task.RunAt))
		}
	}
	return out
}

type report func(i Invariant, format string, args ...any)

// judgeHistory looks for changes after the task's end.
func (o *Oracle) judgeHistory(f *facts, violated report) {
	// Version is the version of the claim that finished the task, so no later claim can exist.
	for _, r := range f.runs {
		if r.Version > f.past.Version {
			violated(Fence, "attempt %d ran with version %d, after the task had finished at version %d", r.Attempt, r.Version, f.past.Version)
		}
	}
	now := mark{sum: fingerprint(f.past), text: describeHistory(f.past)}
	o.mu.Lock()
	before, known := o.seen[f.past.ID]
	if !known {
		o.seen[f.past.ID] = now
	}
	o.mu.Unlock()
	if known && before.sum != now.sum {
		violated(Fence, "its history row has changed; it was %s", before.text)
	}
	if n := f.past.Attempt - f.past.Uncounted; n > f.past.MaxAttempts {
		violated(Number, "history counts %d attempts of %d", n, f.past.MaxAttempts)
	}
	if f.past.StartedAt != nil && f.past.StartedAt.Before(f.past.RunAt) {
		violated(Time, "it was claimed %v before its start time", f.past.RunAt.Sub(*f.past.StartedAt))
	}
}

// mark is a history row as it was first seen.
type mark struct {
	sum  [sha256.Size]byte
	text string
}

// fingerprint is the hash of all columns except rerun_id, the only one that may change.
func fingerprint(h *outbox.HistoryModel) [sha256.Size]byte {
	c := *h
	c.RerunID = nil
	b, err := json.Marshal(c)
	if err != nil { // a document that is not JSON
		b = fmt.Appendf(nil, "%+v", c)
	}
	return sha256.Sum256(b)
}

func judgeEffects(f *facts, violated report) {
	want := 0
	if f.past != nil && f.past.Status == outbox.StatusSuccess {
		want = 1
	}
	if len(f.effects) != want {
		status := "not finished"
		if f.past != nil {
			status = "in history as " + string(f.past.Status)
		}
		violated(Once, "%d effects of a task that is %s", len(f.effects), status)
	}
	if f.past == nil {
		return
	}
	for _, e := range f.effects {
		if e.Version != f.past.Version {
			violated(Fence, "the claim of version %d had an effect, that of version %d finished the task", e.Version, f.past.Version)
		}
	}
}

func judgeRuns(e Expect, f *facts, violated report) {
	attempts := map[int]int{}
	for _, r := range f.runs {
		attempts[r.Attempt]++
		start := r.Due
		if e.NotBefore.After(start) {
			start = e.NotBefore
		}
		if r.At.Before(start) {
			violated(Time, "attempt %d ran %v before its start time", r.Attempt, start.Sub(r.At))
		}
	}
	if e.Kind == Transactional {
		return // its transaction may be tried again within an attempt
	}
	for attempt, n := range attempts {
		if n > 1 {
			violated(Number, "attempt %d ran %d times", attempt, n)
		}
	}
	if n := len(f.runs) - e.Snoozes; e.Kind == Ordinary && e.MaxAttempts > 0 && n > e.MaxAttempts {
		violated(Number, "%d runs of at most %d", n, e.MaxAttempts)
	}
}
