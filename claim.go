package outbox

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/gorm-outbox/outbox/internal/dialect"
)

// farProbe is from one probe to the next while a start time is known that is further away. The next
// scan may come long after it.
const farProbe = time.Hour

// probe asks what is due, and when the next task will be.
func (d *dispatcher) probe(ctx context.Context) (err error) {
	defer caught(&err)
	limited, cancel := context.WithTimeout(ctx, d.statementLimit())
	defer cancel()
	found, err := d.store.d.Probe(limited, d.store.work(nil))
	if err != nil {
		return err
	}
	next := time.Duration(-1)
	var due []dialect.Lane
	clear(d.foreign)
	for _, l := range found {
		if len(d.p.opts.Queues) > 0 && !slices.Contains(d.p.opts.Queues, l.Queue) {
			if l.Due {
				d.foreign[l.Queue] = true
			}
			continue
		}
		if l.Due {
			due = append(due, l.Lane)
		}
		if l.Next >= 0 && (next < 0 || l.Next < next) {
			next = l.Next
		}
	}
	if next >= 0 {
		d.nextDue.Reset(min(next, farProbe))
	}
	d.found(due)
	return nil
}

// found notes which partitions have due tasks.
func (d *dispatcher) found(due []dialect.Lane) {
	d.backlog.found(due)
	d.txBacklog.found(due)
}

// mayHaveMore reports whether there may be due tasks that no claim has found yet.
func (d *dispatcher) mayHaveMore() bool { return d.backlog.mayHaveMore() || d.txBacklog.mayHaveMore() }

// claim takes due tasks for the free slots and starts them; until is RunDue's time, or empty. It returns how many there
// were, and whether it asked the database: not without a free slot, or when nothing is known that could be claimed now. A
// claim that asks and gets nothing has emptied what it asked for.
func (d *dispatcher) claim(ctx context.Context, until string) (n int, asked bool, err error) {
	limit := d.reserve()
	if limit == 0 {
		return 0, false, nil
	}
	defer d.unreserve(limit)
	waiting, cancel := context.WithTimeout(ctx, d.statementLimit())
	defer cancel()
	over, err := d.store.lockWriter(waiting)
	if err != nil {
		return 0, false, err
	}
	most := d.largest.of(limit)
	plan := d.plan(until, most)
	if len(plan) == 0 {
		over()
		return 0, false, nil
	}
	// Not cut short by a shutdown: what has been claimed is to be known.
	limited, cancel := d.outlive(ctx)
	defer cancel()
	lists, err := d.store.claim(limited, plan.params(), most)
	over()
	d.largest.met(most, err)
	if err != nil {
		d.mayHaveClaimed()
		return 0, false, err
	}
	return d.start(plan.claimed(lists, most)), true, nil
}

// largest bounds a claim where the database refuses a transaction that is too large: half as many tasks after that, then one
// more with each claim that succeeds. The zero value does not bound it.
type largest struct{ n atomic.Int64 }

func (l *largest) of(limit int) int {
	if n := int(l.n.Load()); n > 0 {
		return min(n, limit)
	}
	return limit
}

// met notes what became of a claim of up to limit tasks.
func (l *largest) met(limit int, err error) {
	if dialect.Classify(err) == dialect.Data {
		l.n.Store(int64(max(1, limit/2)))
	} else if n := l.n.Load(); err == nil && n > 0 {
		l.n.Store(n + 1)
	}
}

// plan is the claims that are made one after the other for some slots.
type plan []planned

type planned struct {
	dialect.ClaimParams
	from *backlog
	turn turn
}

// plan says what to claim for up to limit slots: nothing when it is not known that something is due.
func (d *dispatcher) plan(until string, limit int) (list plan) {
	add := func(from *backlog, funcs []string, limit int) {
		t := from.take(limit)
		if len(t.lanes) == 0 {
			return
		}
		p := dialect.ClaimParams{Process: d.lease.owner(), Lanes: t.lanes, Marks: t.marks, Share: t.share, Funcs: funcs,
			Repeatable: d.repeatable, Limit: limit, Until: until}
		if until != "" {
			p.Marks = nil // no other claim comes later
		}
		list = append(list, planned{p, from, t})
	}
	if !d.apartTx() {
		add(&d.backlog, d.funcs, limit)
		return list
	}
	// One transaction at a time can write, so at most one transactional task is claimed, in turn with the others.
	add(&d.backlog, d.plainFuncs, limit)
	if d.inTx.Load() > 0 {
		return list
	}
	if add(&d.txBacklog, d.txFuncs, 1); d.txFirst.Add(1)%2 == 0 {
		slices.Reverse(list)
	}
	return list
}

// apartTx reports that transactional tasks are claimed apart from the others. How far claims have come with each is known
// apart, too: a claim of one kind reads past the tasks of the other.
func (d *dispatcher) apartTx() bool { return d.txTurn != nil && len(d.txFuncs) > 0 }

func (p plan) params() []dialect.ClaimParams {
	list := make([]dialect.ClaimParams, len(p))
	for i := range p {
		list[i] = p[i].ClaimParams
	}
	return list
}

// claimed tells the backlogs what the claims of a plan have found for up to limit slots, and returns all of it.
func (p plan) claimed(lists [][]claimed, limit int) (all []claimed) {
	for i := range p {
		if limit := min(p[i].Limit, limit-len(all)); limit > 0 {
			p[i].from.claimed(p[i].turn, limit, lists[i])
		}
		all = append(all, lists[i]...)
	}
	return all
}

// mayHaveClaimed notes that a claim failed: its reply may be lost though it was committed, and then tasks are ours that we
// do not know.
func (d *dispatcher) mayHaveClaimed() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.doubt = time.Now().Add(d.p.opts.HeartbeatLimit)
}

// start runs claimed tasks, and returns how many they are.
func (d *dispatcher) start(list []claimed) int {
	slices.SortStableFunc(list, func(a, b claimed) int {
		if a.task.Priority != b.task.Priority {
			return a.task.Priority - b.task.Priority
		}
		return a.task.RunAt.Compare(b.task.RunAt)
	})
	got := len(list)
	if d.seen != nil {
		// Only a clock that stands still lets a task come back within one RunDue. It is kept until the end: given back
		// now, it would be claimed again and again.
		list = slices.DeleteFunc(list, func(c claimed) bool {
			if d.seen[c.task.ID] {
				d.held = append(d.held, *requeue(c.task, 0, 1, 0, nil).requeue)
				return true
			}
			d.seen[c.task.ID] = true
			return false
		})
	}
	runs := make([]*run, len(list))
	d.mu.Lock()
	for i, c := range list {
		runs[i] = d.newRun(c)
		d.runs[runs[i]] = struct{}{}
		if h := runs[i].handler; h != nil && h.tx {
			d.inTx.Add(1)
		}
	}
	d.mu.Unlock()
	d.p.commits.Claimed(func(yield func(string) bool) {
		for _, r := range runs {
			if !yield(r.task.ID) {
				return
			}
		}
	})
	d.run(runs)
	return got
}

// maxParked bounds the partitions that one statement looks at.
const maxParked = 100

// park takes due tasks out of the claim's way that no live process can run.
func (d *dispatcher) park(ctx context.Context) {
	limited, cancel := context.WithTimeout(ctx, d.statementLimit())
	defer cancel()
	lanes := d.backlog.atHeads(maxParked)
	if len(lanes) == 0 {
		return
	}
	funcs, err := d.store.park(limited, lanes)
	if err != nil {
		if ctx.Err() == nil {
			d.outages.failed("park", err)
		}
		return
	}
	d.outages.recovered("park")
	for _, f := range funcs {
		if !d.unserved[f] {
			d.unserved[f] = true
			d.log.Warn("outbox: tasks parked, no live process that serves their queue has registered their function", "func", f)
		}
	}
}

func (s *store) park(ctx context.Context, lanes []dialect.Lane) (funcs []string, err error) {
	defer caught(&err)
	return s.d.Park(ctx, s.pool, lanes, maxRows)
}

// reconcileSoon lets the loop look for rows that this process owns without knowing, if there seem to be any; in the loop
// no claim of its own is under way meanwhile. owned is how many it runs, as the table has it.
func (d *dispatcher) reconcileSoon(owned int64) {
	d.mu.Lock()
	running := int64(0)
	for r := range d.runs {
		if !r.recorded.Load() { // otherwise its row is gone, and only its handler has not returned
			running++
		}
	}
	d.strays = owned > running
	d.mu.Unlock()
	signal(d.reconcile)
}

var errOutcomeLost = errors.New("its outcome could not be recorded")

// reclaim finds tasks that are claimed by this process without its knowing: the claim's reply was lost, or the outcome was
// refused or given up. The first never ran, and go back; the others did, and are interrupted.
func (d *dispatcher) reclaim(ctx context.Context) {
	if !d.mayReclaim() {
		return
	}
	defer func() {
		d.mu.Lock()
		d.reclaiming = false
		d.mu.Unlock()
	}()
	limited, cancel := context.WithTimeout(ctx, d.statementLimit())
	defer cancel()
	begun := time.Now()
	d.mu.Lock()
	forget := maps.Clone(d.hadRun) // unless their rows are still ours
	d.mu.Unlock()
	owned, err := d.store.owned(limited, d.lease.owner())
	if err != nil {
		if ctx.Err() == nil {
			d.outages.failed("look for claims without a run", err)
		}
		return
	}
	d.outages.recovered("look for claims without a run")
	var outcomes []dialect.Outcome
	var back []dialect.Requeued
	d.mu.Lock()
	known := map[string]int{}
	for r := range d.runs {
		known[r.task.ID] = max(known[r.task.ID], r.task.Attempt)
	}
	hadRun := maps.Clone(d.hadRun)
	d.mu.Unlock()
	for _, c := range owned {
		delete(forget, c.task.ID)
		if n, is := known[c.task.ID]; is && n >= c.task.Attempt {
			continue
		}
		e := ending{giveBack: true}
		if n, had := hadRun[c.task.ID]; had && n >= c.task.Attempt {
			e = ending{reason: ReasonInterrupted, err: errOutcomeLost, text: errOutcomeLost.Error()}
		}
		if v := decide(c.task, e, d.backoff); v.outcome != nil {
			outcomes = append(outcomes, *v.outcome)
		} else {
			back = append(back, *v.requeue)
		}
	}
	if len(outcomes)+len(back) > 0 {
		done, err := d.giveUp(limited, outcomes, back)
		if done > 0 {
			d.log.Warn("outbox: claimed tasks without a run are given back or ended", "count", done)
			d.wake()
		}
		if err != nil {
			d.outages.failed("reclaim", err)
			return
		}
		d.outages.recovered("reclaim")
	}
	// Not by the time alone: while the database was away, nobody could look.
	d.mu.Lock()
	defer d.mu.Unlock()
	if begun.After(d.doubt) {
		d.doubt = time.Time{}
	}
	maps.DeleteFunc(d.hadRun, func(id string, attempt int) bool { return forget[id] == attempt })
}

// noteRun notes that a claim's handler was called though its outcome was refused or given up. Its row may still be running
// then, and must not be taken for that of a claim that nobody has run. A claim is told by its attempt: the version is also
// raised by an edit of the row.
func (d *dispatcher) noteRun(t *TaskModel) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hadRun[t.ID] = max(d.hadRun[t.ID], t.Attempt)
}

// giveUp writes what becomes of claims without a run; where the database refuses some row, one by one. The loop must not wait
// for a row that somebody has locked.
func (d *dispatcher) giveUp(ctx context.Context, outcomes []dialect.Outcome, back []dialect.Requeued) (int, error) {
	done, _, err := d.store.writeUnlocked(ctx, outcomes, back)
	if class := dialect.Classify(err); err == nil || class != dialect.Data && class != dialect.Other || len(outcomes)+len(back) == 1 {
		return len(done), err
	}
	total := 0
	var errs []error
	one := func(outcomes []dialect.Outcome, back []dialect.Requeued) {
		done, _, err := d.store.writeUnlocked(ctx, outcomes, back)
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

// mayReclaim reports whether there is a reason to reclaim, and keeps exchanges from claiming meanwhile. While one is under
// way, whose claims are not known yet, it is too early; its end asks again.
func (d *dispatcher) mayReclaim() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.doubt.IsZero() && !d.strays && len(d.hadRun) == 0 {
		d.reclaiming = false // what looked like strays may have been those of an exchange
		return false
	}
	d.reclaiming = true
	if d.exchanging > 0 {
		return false
	}
	d.strays = false
	return true
}

// claim takes due tasks for a process, at most limit in all by the claims of a plan one after the other, in the caller's turn.
// It returns what each has found. A row that cannot be read comes back as a task with little more than its fence, and an
// error that says why.
func (s *store) claim(ctx context.Context, plan []dialect.ClaimParams, limit int) (lists [][]claimed, err error) {
	defer caught(&err)
	if s.d.OneStatement() || len(plan) == 1 && len(plan[0].Lanes) == 1 {
		return s.claimIn(ctx, s.work(nil), plan, limit)
	}
	err = s.inTx(ctx, func(tx *sql.Tx) (err error) {
		lists, err = s.claimIn(ctx, s.work(tx), plan, limit)
		return err
	})
	if err != nil {
		return nil, err // what was read of a claim that failed is not ours
	}
	return lists, nil
}

func (s *store) claimIn(ctx context.Context, c dialect.Conn, plan []dialect.ClaimParams, limit int) ([][]claimed, error) {
	lists := make([][]claimed, len(plan))
	for i, p := range plan {
		if p.Limit = min(p.Limit, limit); p.Limit == 0 {
			continue
		}
		var scan claimScan
		err := s.d.Claim(ctx, c, p, func(r dialect.Row) error {
			lists[i] = append(lists[i], scan.claimed(r))
			return nil
		})
		if err != nil {
			return nil, err
		}
		limit -= len(lists[i])
	}
	return lists, nil
}

type claimed struct {
	task *TaskModel
	err  error
}

// claimScan reads the rows of one statement. The zero value is ready.
type claimScan struct {
	task TaskModel
	dest []any // its fields
}

func (s *claimScan) claimed(r dialect.Row) claimed {
	if s.dest == nil {
		s.dest = taskDest(&s.task)
	}
	s.task = TaskModel{}
	err := r.Scan(s.dest...)
	if err == nil {
		t := s.task
		return claimed{task: &t}
	}
	// Somebody wrote into the row what its types do not hold, as SQLite allows. Fetch what can be fetched.
	loose := new(TaskModel)
	var queue, path sql.NullString
	var priority any
	dest := make([]any, len(dialect.Columns))
	for i, column := range dialect.Columns {
		switch column {
		case "id":
			dest[i] = &loose.ID
		case "version":
			dest[i] = &loose.Version
		case "func":
			dest[i] = &path
		case "queue":
			dest[i] = &queue
		case "priority":
			dest[i] = &priority
		case "process_id":
			dest[i] = &loose.ProcessID
		default:
			dest[i] = new(any)
		}
	}
	if again := r.Scan(dest...); again != nil {
		err = errors.Join(err, again)
	}
	loose.MaxAttempts, loose.Attempt = 1, 1
	loose.Func, loose.Queue = path.String, queue.String
	loose.Priority, _ = strconv.Atoi(fmt.Sprint(priority)) // else the partition looks emptied, until the next poll
	return claimed{task: loose, err: fmt.Errorf("the row cannot be read: %w", err)}
}
