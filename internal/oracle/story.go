package oracle

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/gorm-outbox/outbox"
)

// story is everything known about a task, in the order of time.
func story(e *Expect, f *facts) string {
	type event struct {
		at   time.Time
		text string
	}
	var events []event
	var created *time.Time
	switch {
	case f.past != nil:
		created = &f.past.CreatedAt
	case f.task != nil:
		created = &f.task.CreatedAt
	}
	if created != nil {
		events = append(events, event{*created, "created"})
	}
	for _, r := range f.runs {
		events = append(events, event{r.At, fmt.Sprintf("run: attempt %d, version %d, pid %d, due %s", r.Attempt, r.Version, r.PID, stamp(r.Due))})
	}
	for _, x := range f.effects {
		events = append(events, event{x.At, fmt.Sprintf("effect: attempt %d, version %d, pid %d", x.Attempt, x.Version, x.PID)})
	}
	var errs outbox.Attempts
	if f.task != nil {
		errs = f.task.Errors
	}
	if f.past != nil {
		errs = f.past.Errors
	}
	for _, a := range errs {
		events = append(events, event{a.At, fmt.Sprintf("attempt %d began, which ended as %s: %s", a.Attempt, a.Reason, firstLine(a.Error))})
	}
	if f.past != nil {
		if f.past.StartedAt != nil {
			events = append(events, event{*f.past.StartedAt, fmt.Sprintf("last claimed: attempt %d", f.past.Attempt)})
		}
		events = append(events, event{f.past.FinishedAt, "finished: " + describeHistory(f.past)})
	}
	slices.SortStableFunc(events, func(a, b event) int { return a.at.Compare(b.at) })

	var b strings.Builder
	if e != nil {
		fmt.Fprintf(&b, "  expected: %s, creation %s, at most %d runs, not before %s %s\n", e.Kind, e.Fate, e.MaxAttempts, stamp(e.NotBefore), e.Note)
	}
	for _, x := range events {
		fmt.Fprintf(&b, "  %s %s\n", stamp(x.at), x.text)
	}
	if t := f.task; t != nil {
		fmt.Fprintf(&b, "  now a task: %s %s, %s, version %d, attempt %d (%d uncounted, %d crashes) of %d, due %s, owner %s, claimed %s\n",
			t.ID, t.Func, t.State, t.Version, t.Attempt, t.Uncounted, t.Crashes, t.MaxAttempts, stamp(t.RunAt), text(t.ProcessID), when(t.StartedAt))
	}
	if f.task == nil && f.past == nil {
		b.WriteString("  neither a task nor in history\n")
	}
	return b.String()
}

func describeHistory(h *outbox.HistoryModel) string {
	return fmt.Sprintf("%s %s %s %s, version %d, attempt %d (%d uncounted, %d crashes) of %d, due %s, claimed %s, finished %s, owner %s, "+
		"error %s, key %s, rerun of %s, rerun %s",
		h.ID, h.Func, h.Status, h.Reason, h.Version, h.Attempt, h.Uncounted, h.Crashes, h.MaxAttempts, stamp(h.RunAt), when(h.StartedAt),
		stamp(h.FinishedAt), text(h.ProcessID), text(h.Error), text(h.Key), text(h.RerunOf), text(h.RerunID))
}

func stamp(t time.Time) string { return t.UTC().Format("15:04:05.000000") }

func when(t *time.Time) string {
	if t == nil {
		return "never"
	}
	return stamp(*t)
}

func text(s *string) string {
	if s == nil {
		return "none"
	}
	return fmt.Sprintf("%q", firstLine(*s))
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return s[:min(len(s), 300)]
}
