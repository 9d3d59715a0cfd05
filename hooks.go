package outbox

import (
	"context"
	"database/sql"
	"errors"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox/internal/dialect"
)

// Hooks are told what happens to tasks, for logs, metrics and traces. They must be quick and safe for concurrent use; a
// panic in one is logged and changes nothing. Embed NopHooks to implement only some.
type Hooks interface {
	// OnCreate is called before the row is inserted, in the creator's transaction, which may still roll back. It may
	// set task.Meta, which goes with the task to its handler and into history, and nothing else: a change of another
	// field fails the creation. An error refuses it.
	//
	// In a re-run task.RerunOf is set, and task.Meta is the finished task's. A key that a hook sets replaces its old
	// text; a key that it leaves out is kept. So a trace may be a new one, but a hook that takes the tenant from ctx must
	// look first whether it is there: ctx belongs to the caller of Rerun.
	OnCreate(ctx context.Context, task *TaskModel) error

	// OnStart is called before the handler. The context that it returns goes to the handler; the task's time limit begins
	// after it. It is also called for a task that ends as bad_args, without a handler.
	OnStart(ctx context.Context, task *TaskModel) context.Context

	// OnFinish is called once for each OnStart, and only then: when the outcome is durable, was refused or could not be
	// recorded, in no particular goroutine. The context is the one that OnStart returned, which has ended.
	//
	// Ends without a run in this process reach no hook: a task that is cancelled or parked, one that is taken over from a
	// dead process, and a claim that goes back before its handler was called.
	OnFinish(ctx context.Context, task *TaskModel, f Finish)
}

// Finish is how one run ended.
type Finish struct {
	Status   Status        // success or error; empty when the task goes back to pending
	Reason   Reason        // says more; empty on success, and when the run did not count because the process stops
	Err      error         // what the handler returned; nil after Snooze; ErrClaimLost when the outcome was refused
	Duration time.Duration // of the handler
	Next     time.Duration // until the next attempt, when the task goes back to pending
}

// NopHooks does nothing; embed it to implement some of Hooks.
type NopHooks struct{}

func (NopHooks) OnCreate(context.Context, *TaskModel) error { return nil }

func (NopHooks) OnStart(ctx context.Context, _ *TaskModel) context.Context { return ctx }

func (NopHooks) OnFinish(context.Context, *TaskModel, Finish) {}

// Waker carries wake-ups from the process that creates a task to those that dispatch. A wake-up is a hint: the scan finds
// what a lost one leaves.
type Waker interface {
	// Created is called after tasks that are due now have been inserted, with the creator's connection, in its
	// transaction if it has one. An error is logged, once until it works again, and changes nothing: the tasks are
	// inserted, and the scan finds them.
	Created(ctx context.Context, conn gorm.ConnPool, pool *sql.DB) error

	// Listen calls wake whenever tasks may be due, until ctx is done. When it returns before, it is called again after
	// a pause; but not after a Permanent error, which is logged once.
	Listen(ctx context.Context, pool *sql.DB, wake func()) error
}

type taskKey struct{}

// TaskFrom gives a handler its task, as it was claimed. It is not to be changed.
func TaskFrom(ctx context.Context) (*TaskModel, bool) {
	t, ok := ctx.Value(taskKey{}).(*TaskModel)
	return t, ok
}

// wakeups carries hints from Create to the dispatchers of the same process. GORM has no hook that runs after a commit;
// but a *sql.Tx can be asked, without any I/O, whether it is over. So a hint is watched until then, and only then is the
// database asked.
type wakeups struct {
	mu      sync.Mutex
	active  int // dispatchers that watch; without one, hints are dropped
	byTx    map[gorm.ConnPool]*hint
	byTask  map[string]*hint
	dueAt   time.Time // the earliest start time that was created here; zero means none
	changed chan struct{}
	timers  bool // wait with timers only, as under a fake clock

	// of the polls that asked, until asked takes them
	lanes []dialect.Lane // where tasks may have become due
	any   bool           // or anywhere
}

type hint struct {
	conn  gorm.ConnPool
	over  func() bool // whether the transaction is over; nil when that cannot be known
	since time.Time   // creation, then the transaction's end
	ended bool
	polls int
	next  time.Time
	tasks map[string]bool // those not seen in a claim yet
	lanes []dialect.Lane  // theirs
	any   bool            // not only there

	asking, found atomic.Bool // of isOver
	due           time.Time   // the earliest later start time that was created in the transaction; zero means none
}

const maxHintTasks = 256 // a batch larger than that is found by one probe anyway

// created hints at tasks that were inserted through conn and are due after a delay.
func (w *wakeups) created(conn gorm.ConnPool, tasks []*TaskModel, delay time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.active == 0 {
		return
	}
	now := time.Now()
	conn = base(conn)
	inTx := isTx(conn)
	comparable := !inTx || reflect.ValueOf(conn).Comparable()
	if delay > 0 && (!inTx || txOver(conn) == nil || !comparable) {
		w.dueBy(now.Add(delay))
		return
	}
	if !comparable {
		return // a foreign pool that cannot be told from others: the scan finds the task
	}
	var h *hint
	if inTx {
		h = w.byTx[conn]
	}
	if h == nil {
		h = &hint{conn: conn, over: txOver(conn), since: now, tasks: map[string]bool{}}
		h.next = now.Add(firstPoll)
		if !inTx {
			// The insert has committed by itself.
			h.conn, h.ended, h.next = nil, true, now
		} else {
			w.byTx[conn] = h
		}
	}
	h.any = h.any || delay > 0
	for _, t := range tasks {
		if lane := (dialect.Lane{Queue: t.Queue, Priority: t.Priority}); t.Queue == "" {
			h.any = true
		} else if !slices.Contains(h.lanes, lane) {
			h.lanes = append(h.lanes, lane)
		}
	}
	if due := now.Add(delay); delay > 0 && (h.due.IsZero() || due.Before(h.due)) {
		h.due = due // counts from the commit on: before it the database does not show the task
	}
	if len(h.tasks) < maxHintTasks {
		for _, t := range tasks[:min(len(tasks), maxHintTasks)] {
			h.tasks[t.ID] = true
			w.byTask[t.ID] = h
		}
	}
	w.signal()
}

// dueBy has the database asked at a start time; it then tells the next one.
func (w *wakeups) dueBy(due time.Time) {
	if w.dueAt.IsZero() || due.Before(w.dueAt) {
		w.dueAt = due
		w.signal()
	}
}

func (w *wakeups) signal() {
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

// seen drops hints whose tasks have all been claimed.
func (w *wakeups) seen(runs []*run) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.byTask) == 0 {
		return
	}
	for _, r := range runs {
		h := w.byTask[r.task.ID]
		if h == nil {
			continue
		}
		delete(w.byTask, r.task.ID)
		if delete(h.tasks, r.task.ID); len(h.tasks) == 0 && h.ended {
			w.drop(h)
		}
	}
}

func (w *wakeups) drop(h *hint) {
	if w.byTx[h.conn] == h {
		delete(w.byTx, h.conn)
	}
	for id := range h.tasks {
		delete(w.byTask, id)
	}
	h.tasks = nil
}

// Polls cost no I/O, so the first ones are close together.
const firstPoll = 100 * time.Microsecond

// afterCommit is when the database is asked after the end of a transaction, whose commit may still be on its way: mostly it
// takes less than a millisecond, but when the server's disk stalls, a hundred. So the answer comes later than it could by half
// of what the commit took at most.
var afterCommit = func() []time.Duration {
	list := []time.Duration{0}
	for at := 200 * time.Microsecond; at < 150*time.Millisecond; at += at / 2 {
		list = append(list, at)
	}
	return list
}()

// poll looks at the hints that are due and says whether the database should be asked now, and when to poll again; zero
// means not until something changes.
func (w *wakeups) poll(now time.Time) (ask bool, next time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	hints := map[*hint]bool{}
	for _, h := range w.byTx {
		hints[h] = true
	}
	for _, h := range w.byTask {
		hints[h] = true
	}
	for h := range hints {
		if lanes, any := h.lanes, h.any; !h.next.After(now) && w.advance(h, now) {
			ask, w.any = true, w.any || any
			for _, l := range lanes {
				if !slices.Contains(w.lanes, l) {
					w.lanes = append(w.lanes, l)
				}
			}
		}
		if h.tasks != nil && (next.IsZero() || h.next.Before(next)) {
			next = h.next
		}
	}
	if !w.dueAt.IsZero() {
		if !w.dueAt.After(now) {
			w.dueAt, ask, w.any = time.Time{}, true, true
		} else if next.IsZero() || w.dueAt.Before(next) {
			next = w.dueAt
		}
	}
	return ask, next
}

// advance polls one hint and reports whether the database should be asked.
func (w *wakeups) advance(h *hint, now time.Time) bool {
	if !h.ended && h.over != nil {
		if !h.isOver() {
			h.next = now.Add(max(firstPoll*time.Duration(1+len(w.byTx)/16), min(now.Sub(h.since)/32, 100*time.Millisecond)))
			return false
		}
		h.ended, h.since = true, now
		soon := !h.due.IsZero() && h.due.Before(now.Add(afterCommit[len(afterCommit)-1]))
		if !h.due.IsZero() && !soon {
			w.dueBy(h.due)
		}
		if len(h.tasks) == 0 && !soon {
			w.drop(h)
			return false
		}
	}
	if !h.ended {
		// Nobody can tell when this transaction ends: ask at growing intervals, as long as a scan would not be sooner.
		age := now.Sub(h.since)
		h.next = now.Add(max(500*time.Microsecond, age/2))
		if age > time.Second {
			w.drop(h)
		}
		return true
	}
	if h.polls++; h.polls >= len(afterCommit) {
		w.drop(h)
		return true
	}
	h.next = h.since.Add(afterCommit[h.polls])
	return true
}

// isOver asks whether the transaction is over, but waits only briefly for the answer: it is at hand unless the transaction
// is being rolled back while a statement of it is under way.
func (h *hint) isOver() bool {
	if !h.found.Load() && h.asking.CompareAndSwap(false, true) {
		answered := make(chan struct{})
		go func() {
			defer close(answered)
			over := true // also of a pool that cannot be asked: then the database is
			defer func() {
				_ = recover()
				h.found.Store(over)
				h.asking.Store(false)
			}()
			over = h.over()
		}()
		patience := time.NewTimer(time.Millisecond)
		defer patience.Stop()
		select {
		case <-answered:
		case <-patience.C:
		}
	}
	return h.found.Load()
}

// activate makes hints count from now on, until deactivate.
func (w *wakeups) activate() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.active++; w.changed == nil {
		w.changed = make(chan struct{}, 1)
		w.byTx, w.byTask = map[gorm.ConnPool]*hint{}, map[string]*hint{}
	}
}

func (w *wakeups) deactivate() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.active--; w.active == 0 {
		clear(w.byTx)
		clear(w.byTask)
		w.dueAt = time.Time{}
	}
}

// asked takes what the polls since the last call have asked for; nil means anywhere.
func (w *wakeups) asked() []dialect.Lane {
	w.mu.Lock()
	defer w.mu.Unlock()
	lanes := w.lanes
	if w.any {
		lanes = nil
	}
	w.lanes, w.any = nil, false
	return lanes
}

// watch calls wake when tasks that this process created may have become due, with their lanes or, if these are not known,
// with none, until ctx is done. It follows activate.
func (w *wakeups) watch(ctx context.Context, wake func([]dialect.Lane)) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.changed:
		case <-timer.C:
		}
		for {
			ask, next := w.poll(time.Now())
			if ask {
				wake(w.asked())
			}
			if next.IsZero() {
				timer.Stop()
				break
			}
			if pause := time.Until(next); ctx.Err() != nil || w.timers || !nap(pause) {
				timer.Reset(pause)
				break
			}
		}
	}
}

// txOver gives a way to ask, without I/O, whether a transaction has been committed or rolled back; nil when the pool is
// of a kind that does not tell.
func txOver(conn gorm.ConnPool) func() bool {
	if prepared, ok := conn.(*gorm.PreparedStmtTX); ok {
		conn = prepared.Tx
	}
	tx, ok := conn.(gorm.Tx)
	if !ok {
		return nil
	}
	if guarded, ok := tx.(*guardedTx); ok {
		tx = guarded.Tx // which the guard would ask with a statement, and call closed when it is not over yet
	}
	// StmtContext looks whether the transaction is over before it looks at the statement, and reports either from Close.
	// The statement is of no database, so nothing can be executed.
	return func() bool {
		return errors.Is(tx.StmtContext(context.Background(), new(sql.Stmt)).Close(), sql.ErrTxDone)
	}
}
