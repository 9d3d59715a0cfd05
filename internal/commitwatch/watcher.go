// Package commitwatch reports when a caller's transaction is over.
//
// GORM has no hook that runs after a commit. But a *sql.Tx can be asked, without any I/O, whether
// it is over. So each transaction that has created tasks is watched until its end. Only then is the
// database asked for tasks that have become due.
//
// The package knows transactions, the ids of tasks and the partitions in which the tasks wait. It
// must not know how a task is stored, claimed or run.
package commitwatch

import (
	"context"
	"iter"
	"reflect"
	"slices"
	"sync"
	"time"
)

// Watcher watches the transactions of one process. P is the partition in which a task waits; the
// zero value of P means that the partition is not known. The zero Watcher is ready for use, and
// ignores all reports until Activate. It is safe for concurrent use.
type Watcher[P comparable] struct {
	TimersOnly bool // wait only with timers, for example under a fake clock; set before Watch

	mu      sync.Mutex
	active  int // calls of Activate without their Deactivate
	byTx    map[any]*pendingTx[P]
	byTask  map[string]*pendingTx[P]
	dueAt   time.Time // the earliest start time of tasks created here; zero means none
	changed chan struct{}
	due     partitions[P] // partitions that polls found due, until Watch passes them on
}

// partitions are the partitions in which tasks may be due.
type partitions[P comparable] struct {
	list []P
	any  bool // tasks may be due in other partitions, too
}

func (s *partitions[P]) add(p P) {
	var unknown P
	if p == unknown {
		s.any = true
	} else if !slices.Contains(s.list, p) {
		s.list = append(s.list, p)
	}
}

func (s *partitions[P]) addAll(others partitions[P]) {
	s.any = s.any || others.any
	for _, p := range others.list {
		s.add(p)
	}
}

// pendingTx is a transaction that has created tasks. It is watched until its tasks are claimed, or
// until the database has been asked often enough.
type pendingTx[P comparable] struct {
	question
	tx    any       // nil for a statement that has committed on its own
	since time.Time // creation, then the transaction's end
	ended bool
	polls int // since its end
	next  time.Time
	tasks map[string]bool // not claimed yet
	where partitions[P]   // of the tasks
	runAt time.Time       // the earliest future start time of its tasks; zero means none
}

// maxTasks limits the tasks that are kept for one transaction. One poll of the database finds a
// larger batch in any case.
const maxTasks = 256

// Created reports tasks that are due as soon as tx commits. A nil tx means that the tasks are
// already committed.
func (w *Watcher[P]) Created(tx any, tasks iter.Seq2[string, P]) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.active == 0 || !watchable(tx) {
		// A map cannot distinguish this transaction from others. The scan finds its tasks.
		return
	}
	t := w.pending(tx)
	full := len(t.tasks) >= maxTasks
	added := 0
	for id, partition := range tasks {
		t.where.add(partition)
		if added++; !full && added <= maxTasks {
			t.tasks[id] = true
			w.byTask[id] = t
		}
	}
	w.signal()
}

// CreatedFor reports a task that starts after a delay. It counts once tx has committed, because the
// database does not show the task earlier. A nil tx means that the task is already committed.
func (w *Watcher[P]) CreatedFor(tx any, delay time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.active == 0 {
		return
	}
	due := time.Now().Add(delay)
	if tx == nil || Over(tx) == nil || !watchable(tx) {
		w.startAt(due)
		return
	}
	t := w.pending(tx)
	t.where.any = true
	if t.runAt.IsZero() || due.Before(t.runAt) {
		t.runAt = due
	}
	w.signal()
}

// watchable reports whether a transaction can be a key of a map.
func watchable(tx any) bool { return tx == nil || reflect.ValueOf(tx).Comparable() }

// pending returns the pendingTx of a transaction, and creates it if necessary. w.mu must be held.
func (w *Watcher[P]) pending(tx any) *pendingTx[P] {
	if t := w.byTx[tx]; t != nil && tx != nil {
		return t
	}
	now := time.Now()
	t := &pendingTx[P]{tx: tx, since: now, tasks: map[string]bool{}}
	if tx == nil {
		t.ended, t.next = true, now
		return t
	}
	t.over, t.next = Over(tx), now.Add(firstPoll)
	w.byTx[tx] = t
	return t
}

// startAt makes Watch ask the database at a start time. w.mu must be held.
func (w *Watcher[P]) startAt(due time.Time) {
	if w.dueAt.IsZero() || due.Before(w.dueAt) {
		w.dueAt = due
		w.signal()
	}
}

func (w *Watcher[P]) signal() {
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

// Claimed reports tasks that a dispatcher of this process has claimed. A transaction is no longer
// watched after all of its tasks have been claimed.
func (w *Watcher[P]) Claimed(ids iter.Seq[string]) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.byTask) == 0 {
		return
	}
	for id := range ids {
		t := w.byTask[id]
		if t == nil {
			continue
		}
		delete(w.byTask, id)
		if delete(t.tasks, id); len(t.tasks) == 0 && t.ended {
			w.drop(t)
		}
	}
}

// drop ends the watch of a transaction. w.mu must be held.
func (w *Watcher[P]) drop(t *pendingTx[P]) {
	if w.byTx[t.tx] == t {
		delete(w.byTx, t.tx)
	}
	for id := range t.tasks {
		delete(w.byTask, id)
	}
	t.tasks = nil
}

// Polls of transactions cost no I/O, so the first ones follow each other closely.
const firstPoll = 100 * time.Microsecond

// afterCommit are the times after the end of a transaction at which the database is asked. The
// commit may still be on its way: usually it takes less than a millisecond, but a hundred when the
// server's disk stalls. The intervals grow so that the delay is at most half of the commit's
// duration.
var afterCommit = func() []time.Duration {
	list := []time.Duration{0}
	for at := 200 * time.Microsecond; at < 150*time.Millisecond; at += at / 2 {
		list = append(list, at)
	}
	return list
}()

// poll polls the transactions whose time has come. It reports whether to ask the database now, and
// when to poll again; zero means not before something changes.
func (w *Watcher[P]) poll(now time.Time) (ask bool, next time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	watched := map[*pendingTx[P]]bool{}
	for _, t := range w.byTx {
		watched[t] = true
	}
	for _, t := range w.byTask {
		watched[t] = true
	}
	for t := range watched {
		if !t.next.After(now) && w.advance(t, now) {
			ask = true
			w.due.addAll(t.where)
		}
		if t.tasks != nil && (next.IsZero() || t.next.Before(next)) {
			next = t.next
		}
	}
	if !w.dueAt.IsZero() {
		if !w.dueAt.After(now) {
			w.dueAt, ask, w.due.any = time.Time{}, true, true
		} else if next.IsZero() || w.dueAt.Before(next) {
			next = w.dueAt
		}
	}
	return ask, next
}

// advance polls one transaction and reports whether to ask the database. w.mu must be held.
func (w *Watcher[P]) advance(t *pendingTx[P], now time.Time) bool {
	if !t.ended && t.over != nil {
		if !t.isOver() {
			t.next = now.Add(max(firstPoll*time.Duration(1+len(w.byTx)/16),
				min(now.Sub(t.since)/32, 100*time.Millisecond)))
			return false
		}
		t.ended, t.since = true, now
		soon := !t.runAt.IsZero() && t.runAt.Before(now.Add(afterCommit[len(afterCommit)-1]))
		if !t.runAt.IsZero() && !soon {
			w.startAt(t.runAt)
		}
		if len(t.tasks) == 0 && !soon {
			w.drop(t)
			return false
		}
	}
	if !t.ended {
		// The end of this transaction cannot be found out. Ask at growing intervals, until a scan
		// would be sooner.
		age := now.Sub(t.since)
		t.next = now.Add(max(500*time.Microsecond, age/2))
		if age > time.Second {
			w.drop(t)
		}
		return true
	}
	if t.polls++; t.polls >= len(afterCommit) {
		w.drop(t)
		return true
	}
	t.next = t.since.Add(afterCommit[t.polls])
	return true
}

// Activate makes the Watcher keep reports until Deactivate. Without a dispatcher that watches, it
// keeps none.
func (w *Watcher[P]) Activate() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.active++; w.changed == nil {
		w.changed = make(chan struct{}, 1)
		w.byTx, w.byTask = map[any]*pendingTx[P]{}, map[string]*pendingTx[P]{}
	}
}

// Deactivate undoes one Activate. The last Deactivate forgets all pending transactions.
func (w *Watcher[P]) Deactivate() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.active--; w.active == 0 {
		clear(w.byTx)
		clear(w.byTask)
		w.dueAt = time.Time{}
	}
}

// Pending returns the numbers of transactions and tasks that are watched.
func (w *Watcher[P]) Pending() (transactions, tasks int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.byTx), len(w.byTask)
}

// takeDue returns the partitions that polls have found due since the last call; nil means any
// partition.
func (w *Watcher[P]) takeDue() []P {
	w.mu.Lock()
	defer w.mu.Unlock()
	due := w.due
	w.due = partitions[P]{}
	if due.any {
		return nil
	}
	return due.list
}

// Watch calls wake when tasks of this process may have become due. It passes their partitions, or
// nil if they are not known. It returns when ctx is done. Activate must be called first.
func (w *Watcher[P]) Watch(ctx context.Context, wake func([]P)) {
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
				wake(w.takeDue())
			}
			if next.IsZero() {
				timer.Stop()
				break
			}
			if pause := time.Until(next); ctx.Err() != nil || w.TimersOnly || !sleepBriefly(pause) {
				timer.Reset(pause)
				break
			}
		}
	}
}
