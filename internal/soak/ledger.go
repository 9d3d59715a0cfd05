//go:build unix

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/oracle"
)

const (
	firstLook = 10 * time.Second // a task is checked this long after its creation
	// The task is checked again. It must not have changed since. Longer than any pause.
	lastLook = 60 * time.Second
)

// ledger has the tasks that the children have reported as created, until each was checked twice.
type ledger struct {
	mu   sync.Mutex
	open map[string]*entry
	// Tasks after their last check. Their rows are to be deleted, or may be deleted already.
	leaving []string
	created int // total number of tasks
	checked int // number of tasks after their last check
	broken  map[string]bool
}

type entry struct {
	oracle.Expect
	path   string
	since  time.Time
	looked bool
}

func (e *entry) expect() oracle.Expect {
	x := e.Expect
	x.Note = e.path
	return x
}

// follow reads the reports of one child until its output ends.
func (l *ledger) follow(r io.Reader) {
	in := bufio.NewScanner(r)
	for in.Scan() {
		var said line
		if json.Unmarshal(in.Bytes(), &said) != nil {
			continue // the child was killed in the middle of a line
		}
		l.mu.Lock()
		e := l.open[said.Task]
		switch {
		case said.Func == "": // rescheduled
			if e != nil {
				e.NotBefore = time.Time{}
			}
		case e == nil:
			l.created++
			l.open[said.Task] = &entry{Expect: said.Expect, path: said.Func, since: time.Now()}
		default:
			e.Fate = said.Fate
		}
		l.mu.Unlock()
	}
}

// due returns the tasks to check now, or all tasks.
func (l *ledger) due(all bool) (out []oracle.Expect) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.open {
		age := time.Since(e.since)
		if all || age > lastLook || age > firstLook && !e.looked {
			out = append(out, e.expect())
		}
	}
	return out
}

// again returns the tasks of violations.
func (l *ledger) again(violations []oracle.Violation) (out []oracle.Expect) {
	l.mu.Lock()
	defer l.mu.Unlock()
	seen := map[string]bool{}
	for _, v := range violations {
		if e := l.open[v.Task]; e != nil && !seen[v.Task] {
			seen[v.Task] = true
			out = append(out, e.expect())
		}
	}
	return out
}

// check checks the tasks that are due for it, and forgets those that have ended and were checked
// twice.
func (s *soak) check(ctx context.Context) error {
	l := &s.ledger
	// If the server crashed during an earlier deletion, the remaining rows would look like runs of
	// unknown tasks.
	if err := s.forget(ctx); err != nil {
		return err
	}
	due := l.due(false)
	ids := make([]string, len(due))
	for i, e := range due {
		ids[i] = e.Task
	}
	// A task that has ended before the oracle reads has also ended when it reads.
	waiting := map[string]bool{}
	for part := ids; len(part) > 0; {
		n := min(len(part), 500)
		var still []string
		if err := s.db.WithContext(ctx).Model(&outbox.TaskModel{}).Where("id IN ?", part[:n]).Pluck("id", &still).Error; err != nil {
			return err
		}
		for _, id := range still {
			waiting[id] = true
		}
		part = part[n:]
	}
	violations, err := s.o.Check(ctx, oracle.Question{Created: due})
	if err != nil {
		return err
	}
	if len(violations) > 0 {
		// A report of a child after the tasks were picked may explain it.
		if violations, err = s.o.Check(ctx, oracle.Question{Created: l.again(violations)}); err != nil {
			return err
		}
		s.report(violations)
	}
	l.mu.Lock()
	for _, id := range ids {
		e := l.open[id]
		e.looked = true
		if !waiting[id] && time.Since(e.since) > lastLook+firstLook {
			delete(l.open, id)
			l.leaving = append(l.leaving, id)
			l.checked++
		}
	}
	l.mu.Unlock()
	return s.forget(ctx)
}

// forget deletes the rows of tasks that have left the ledger. If it fails, perhaps only the reply
// was lost.
func (s *soak) forget(ctx context.Context) error {
	l := &s.ledger
	for len(l.leaving) > 0 {
		part := l.leaving[:min(len(l.leaving), 500)]
		if err := s.db.WithContext(ctx).Where("id IN ?", part).Delete(&outbox.HistoryModel{}).Error; err != nil {
			return err
		}
		if err := s.o.Forget(ctx, part); err != nil {
			return err
		}
		l.leaving = l.leaving[len(part):]
	}
	return nil
}

// report prints each violation once.
func (s *soak) report(violations []oracle.Violation) {
	s.ledger.mu.Lock()
	defer s.ledger.mu.Unlock()
	for _, v := range violations {
		key := string(v.Invariant) + v.Task + v.What
		if !s.ledger.broken[key] {
			s.ledger.broken[key] = true
			if len(s.ledger.broken) <= 50 {
				fmt.Printf("VIOLATION %s", v)
			}
		}
	}
}
