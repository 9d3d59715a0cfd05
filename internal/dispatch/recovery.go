package dispatch

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/gorm-outbox/outbox/internal/dialect"
	"github.com/gorm-outbox/outbox/internal/store"
)

// recovery finds tasks that this process has claimed without knowing: the reply to the claim was
// lost, or the outcome of the run was refused or given up. The first never ran and go back to
// pending; the others did, and are interrupted. While it looks, nothing else may claim: the loop
// runs it, and the completer asks it before it refills.
type recovery struct {
	store   *store.Store
	lease   *lease
	slots   *slots
	outages *outages
	wakeups *wakeups
	log     *slog.Logger
	backoff func(int) time.Duration
	limit   time.Duration // of a statement
	doubt   time.Duration // how long a claim whose reply was lost may still commit

	mu          sync.Mutex
	unknown     bool           // the table has more running tasks of this process than there are runs
	doubtUntil  time.Time      // a claim may commit until then; zero once recovery has run after it
	outcomeless map[string]int // attempt by task id of runs without a persisted outcome; their rows may still be running
	mayRefill   bool           // the loop runs
	refills     int            // under way
	wanted      bool           // recovery runs or is about to, so no refill may begin
}

// claimReplyLost is called after a claim that failed: it may have been committed.
func (r *recovery) claimReplyLost() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.doubtUntil = time.Now().Add(r.doubt)
}

// outcomeLost is called when a run's outcome was refused or given up. Its row may still be running
// then, and must not be taken for that of a claim that never ran. A claim is known by its attempt:
// an edit of the row raises the version, too.
func (r *recovery) outcomeLost(t *store.Task) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.outcomeless[t.ID] = max(r.outcomeless[t.ID], t.Attempt)
}

// compare lets recovery run if this process owns more running tasks than it has runs.
func (r *recovery) compare(owned int64) {
	running := int64(0)
	r.slots.each(func(run *run) {
		if run.state.is() != runLeftBehind { // whose row is gone
			running++
		}
	})
	r.mu.Lock()
	r.unknown = owned > running
	r.mu.Unlock()
	r.wakeups.add(claimsUnknown)
}

// allowRefills lets refills begin, or no more.
func (r *recovery) allowRefills(yes bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mayRefill = yes
}

// beginRefill reports whether a claim beside the loop's may begin. endRefill is called after it.
func (r *recovery) beginRefill() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.mayRefill || r.wanted {
		return false
	}
	r.refills++
	return true
}

// endRefill is called when the runs of what was claimed have started.
func (r *recovery) endRefill() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.refills--; r.wanted && r.refills == 0 {
		r.wakeups.add(claimsUnknown)
	}
}

// begin reports whether recovery has something to look for, and keeps refills from beginning. While
// one is under way, whose claims are not known yet, it is too early; the end of the refill asks
// again.
func (r *recovery) begin() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.doubtUntil.IsZero() && !r.unknown && len(r.outcomeless) == 0 {
		r.wanted = false // what looked unknown may have been the claims of a refill
		return false
	}
	r.wanted = true
	if r.refills > 0 {
		return false
	}
	r.unknown = false
	return true
}

func (r *recovery) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wanted = false
}

var errOutcomeLost = errors.New("its outcome could not be recorded")

// run looks for such tasks and writes what becomes of them.
func (r *recovery) run(ctx context.Context) {
	if !r.begin() {
		return
	}
	defer r.end()
	limited, cancel := context.WithTimeout(ctx, r.limit)
	defer cancel()
	begun := time.Now()
	r.mu.Lock()
	forget := maps.Clone(r.outcomeless) // unless their rows are still ours
	r.mu.Unlock()
	owned, err := r.store.Owned(limited, r.lease.owner())
	if err != nil {
		if ctx.Err() == nil {
			r.outages.failed("look for claims without a run", err)
		}
		return
	}
	r.outages.recovered("look for claims without a run")
	for _, c := range owned {
		delete(forget, c.Task.ID)
	}
	if outcomes, back := r.decide(owned); len(outcomes)+len(back) > 0 {
		done, err := r.write(limited, outcomes, back)
		if done > 0 {
			r.log.Warn("outbox: claimed tasks without a run were requeued or ended", "count", done)
			r.wakeups.add(maybeDue)
		}
		if err != nil {
			r.outages.failed("reclaim", err)
			return
		}
		r.outages.recovered("reclaim")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	// Not by the time alone: while the database was away, recovery could not look.
	if begun.After(r.doubtUntil) {
		r.doubtUntil = time.Time{}
	}
	maps.DeleteFunc(r.outcomeless, func(id string, attempt int) bool { return forget[id] == attempt })
}

// decide says what becomes of the tasks that no run stands for.
func (r *recovery) decide(owned []store.Claimed) (outcomes []dialect.Outcome, back []dialect.Requeued) {
	running := map[string]int{}
	r.slots.each(func(run *run) { running[run.task.ID] = max(running[run.task.ID], run.task.Attempt) })
	r.mu.Lock()
	ran := maps.Clone(r.outcomeless)
	r.mu.Unlock()
	for _, c := range owned {
		if attempt, is := running[c.Task.ID]; is && attempt >= c.Task.Attempt {
			continue
		}
		res := result{giveBack: true}
		if attempt, did := ran[c.Task.ID]; did && attempt >= c.Task.Attempt {
			res = result{reason: ReasonInterrupted, err: errOutcomeLost, text: errOutcomeLost.Error()}
		}
		if t := decide(c.Task, res, r.backoff); t.outcome != nil {
			outcomes = append(outcomes, *t.outcome)
		} else {
			back = append(back, *t.requeue)
		}
	}
	return outcomes, back
}

// write writes what becomes of the tasks; where the database refuses a row, one by one. It does not
// wait for a row that another transaction has locked: the loop waits for it.
func (r *recovery) write(ctx context.Context, outcomes []dialect.Outcome, back []dialect.Requeued) (int, error) {
	done, _, err := r.store.CompleteUnlocked(ctx, outcomes, back)
	if class := dialect.Classify(err); err == nil || class != dialect.Data && class != dialect.Other || len(outcomes)+len(back) == 1 {
		return len(done), err
	}
	total := 0
	var errs []error
	one := func(outcomes []dialect.Outcome, back []dialect.Requeued) {
		done, _, err := r.store.CompleteUnlocked(ctx, outcomes, back)
		total, errs = total+len(done), append(errs, err)
	}
	for i := range outcomes {
		one(outcomes[i:i+1], nil)
	}
	for i := range back {
		one(nil, back[i:i+1])
	}
	return total, errors.Join(errs...)
}
