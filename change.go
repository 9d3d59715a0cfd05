package outbox

import (
	"errors"
	"fmt"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox/internal/dialect"
	"github.com/gorm-outbox/outbox/internal/store"
	"github.com/gorm-outbox/outbox/internal/text"
)

// Cancel takes a task that waits (pending or parked) out of the task table and records it in
// history as cancelled, in tx's transaction. Option: IfVersion.
//
// A task that runs gives ErrRunning, one that is gone ErrNotFound, another version than IfVersion's
// ErrConflict; the transaction stays usable. A transaction that makes a task needless, such as an
// order's payment, may ignore the first two: its handler has to check anyway, since it may have
// started before.
func Cancel(tx *gorm.DB, id string, opts ...ChangeOption) error {
	err := change(tx, opts, func(h handle, s settings) error {
		if err := checkID(id); err != nil {
			return err
		}
		return h.cancel(id, s.version)
	})
	if err != nil {
		return fmt.Errorf("outbox: cancel %s: %w", text.Quote(id), err)
	}
	return nil
}

// HeldKey is what CancelKey has found under a key.
type HeldKey struct {
	ID    string // of the unfinished task that had the key; empty when none had
	State State  // in which CancelKey found it; empty when it found none
}

// Cancelled reports whether CancelKey has cancelled the task: it does not cancel one that runs.
func (k HeldKey) Cancelled() bool { return k.State == StatePending || k.State == StateParked }

// CancelKey cancels the task that waits with the key, if one does. It says what it has found, as
// tx's transaction sees it: a task that waited, and is cancelled now; one that runs, and goes on;
// or none. Neither of the last two is an error. Option: IfVersion, which gives ErrConflict for
// another version.
func CancelKey(tx *gorm.DB, key string, opts ...ChangeOption) (HeldKey, error) {
	var held HeldKey
	err := change(tx, opts, func(h handle, s settings) (err error) {
		held = HeldKey{}
		if checkText(key, maxKey) != nil {
			return nil // Key refuses it, so no task has it
		}
		if err := h.begin(); err != nil {
			return err
		}
		if held, err = h.cancelKey(key, s.version, false); errors.Is(err, ErrNotFound) {
			// The task has ended since the transaction began. Another one may have the key now.
			if held, err = h.cancelKey(key, s.version, true); errors.Is(err, ErrNotFound) {
				return nil
			}
		}
		return err
	})
	if err != nil {
		return HeldKey{}, fmt.Errorf("outbox: cancel key %s: %w", text.Quote(key), err)
	}
	return held, nil
}

// cancelKey is one try. It gives ErrNotFound when the task that it has found has ended meanwhile.
func (h handle) cancelKey(key string, version *int64, latest bool) (HeldKey, error) {
	id, state, err := h.store.HolderOf(h.ctx, h.traced(), key, latest)
	if err != nil || id == "" {
		return HeldKey{}, err
	}
	held := HeldKey{id, State(state)}
	if !held.Cancelled() {
		return held, nil
	}
	if err := h.cancel(id, version); errors.Is(err, ErrRunning) { // since a moment ago
		return HeldKey{id, StateRunning}, nil
	} else if err != nil {
		return HeldKey{}, err
	}
	return held, nil
}

// Reschedule gives a task that waits (pending or parked) another start time, in tx's transaction. A
// time that is not in the future means now, so Reschedule(tx, id, time.Now()) runs it at once.
// Option: IfVersion. Errors as for Cancel.
func Reschedule(tx *gorm.DB, id string, at time.Time, opts ...ChangeOption) error {
	err := change(tx, opts, func(h handle, s settings) error {
		if err := checkID(id); err != nil {
			return err
		}
		return h.reschedule(id, at, s.version)
	})
	if err != nil {
		return fmt.Errorf("outbox: reschedule %s: %w", text.Quote(id), err)
	}
	return nil
}

// Rerun creates a new task from one that has finished, in tx's transaction: with the same function,
// arguments, key, queue, priority, attempts, time limit and Meta, due at once, unless options say
// otherwise. The history row stays as it is, but names the new task. Options: WithArgs and those of
// Create. Hooks see the new task with the finished one's Meta and may set its keys anew; see
// Hooks.OnCreate.
//
// Errors: those of Create; ErrNotFound for an id that history does not have (any more); ErrConflict
// for a task that has not finished, or has been re-run already. The transaction stays usable.
func Rerun(tx *gorm.DB, id string, opts ...RerunOption) (*TaskModel, error) {
	var task *TaskModel
	err := change(tx, nil, func(h handle, _ settings) error {
		if err := checkID(id); err != nil {
			return err
		}
		return h.inTxOrSavepoint(func(h handle) (err error) {
			task, err = h.rerun(id, opts)
			return err
		})
	})
	if err != nil {
		return nil, fmt.Errorf("outbox: rerun %s: %w", text.Quote(id), err)
	}
	return task, nil
}

// Lookup finds a task wherever it is by now: one of the two results is not nil, or the error is
// ErrNotFound. It reads through tx, and thus from the primary.
func Lookup(tx *gorm.DB, id string) (*TaskModel, *HistoryModel, error) {
	var task *TaskModel
	var past *HistoryModel
	err := change(tx, nil, func(h handle, _ settings) error {
		if err := checkID(id); err != nil {
			return err
		}
		// In this order: a task that finishes in between is found in history.
		row, err := h.store.Task(h.ctx, h.traced(), id, false)
		if err != nil {
			return err
		}
		if row != nil {
			task = taskModel(row)
			return nil
		}
		ended, err := h.store.History(h.ctx, h.traced(), id, false)
		if err != nil {
			return err
		}
		if ended == nil {
			return ErrNotFound
		}
		past = historyModel(ended)
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("outbox: look up %s: %w", text.Quote(id), err)
	}
	return task, past, nil
}

// checkID keeps texts out of statements that a database refuses, which would abort the caller's
// transaction.
func checkID(id string) error {
	if checkText(id, maxID) != nil {
		return ErrNotFound
	}
	return nil
}

func change(tx *gorm.DB, opts []ChangeOption, f func(handle, settings) error) error {
	h, err := open(tx)
	if err != nil {
		return err
	}
	var s settings
	for i, o := range opts {
		if o == nil {
			return fmt.Errorf("%w: option %d is nil", ErrBadOption, i)
		}
		o.forChange(&s)
	}
	return h.withRetry(func() error { return f(h, s) })
}

// mustWait fails with ErrNotFound when history has the task. Where reads of an open transaction are
// of the past, a look for a task to change is one that locks, and for a task that is gone it would
// lock the gap in which others create theirs.
func (h handle) mustWait(id string) error {
	if h.store.Dialect.Latest() == "" {
		return nil
	}
	past, err := h.store.History(h.ctx, h.traced(), id, false)
	if err == nil && past != nil {
		err = gone(past)
	}
	return err
}

// gone is the error of a change of a task that has ended.
func gone(h *store.History) error {
	return fmt.Errorf("%w: it ended as %s at %s", ErrNotFound, h.Status, formatTime(&h.FinishedAt))
}

func (h handle) cancel(id string, version *int64) error {
	if err := h.mustWait(id); err != nil {
		return h.store.Explain(err)
	}
	outcome := dialect.Outcome{ID: id, Version: version, Status: string(StatusCancelled), Reason: string(ReasonCancelled)}
	var ended bool
	move := func(h handle) (err error) {
		ended, err = h.store.EndWaiting(h.ctx, h.traced(), outcome)
		return err
	}
	var err error
	if h.store.Dialect.OneStatement() {
		err = move(h)
	} else {
		err = h.inTxOrSavepoint(move)
	}
	if err != nil {
		return err
	}
	if !ended {
		return h.whyNot(id)
	}
	return nil
}

func (h handle) reschedule(id string, at time.Time, version *int64) error {
	if err := checkTime(at); err != nil {
		return fmt.Errorf("%w: start time: %w", ErrBadOption, err)
	}
	if err := h.mustWait(id); err != nil {
		return h.store.Explain(err)
	}
	delay, start := at.Sub(h.p.now()), time.Time{}
	if delay > 0 {
		start = roundUp(at)
	}
	changed, err := h.store.Reschedule(h.ctx, h.traced(), id, start, version)
	if err != nil {
		return err
	}
	if !changed {
		return h.whyNot(id)
	}
	if delay > 0 {
		h.p.commits.CreatedFor(transaction(h.conn), delay)
		return nil
	}
	h.wake([]*TaskModel{{ID: id}})
	return nil
}

// whyNot explains why a task that should wait could not be changed.
func (h handle) whyNot(id string) error {
	task, err := h.store.Task(h.ctx, h.traced(), id, true)
	switch {
	case err != nil:
		return err
	case task != nil && task.State == store.Running:
		return fmt.Errorf("%w since %s", ErrRunning, formatTime(task.StartedAt))
	case task != nil:
		return fmt.Errorf("%w: it is %s, version %d", ErrConflict, task.State, task.Version)
	}
	past, err := h.store.History(h.ctx, h.traced(), id, true)
	switch {
	case err != nil:
		return err
	case past != nil:
		return gone(past)
	}
	return ErrNotFound
}

// rerun marks the history row, then inserts the new task; the caller makes both one.
func (h handle) rerun(id string, opts []RerunOption) (*TaskModel, error) {
	row, err := h.store.History(h.ctx, h.traced(), id, false)
	if err != nil {
		return nil, err
	}
	if row == nil {
		task, err := h.store.Task(h.ctx, h.traced(), id, false)
		if err == nil && task != nil {
			err = fmt.Errorf("%w: it has not finished but is %s", ErrConflict, task.State)
		} else if err == nil {
			err = ErrNotFound
		}
		return nil, err
	}
	past := historyModel(row)
	if past.RerunID != nil {
		return nil, fmt.Errorf("%w: it has been re-run already, as %s", ErrConflict, *past.RerunID)
	}
	inherited := []RerunOption{MaxAttempts(past.MaxAttempts), Timeout(time.Duration(past.TimeoutMS) * time.Millisecond),
		Queue(past.Queue), Priority(past.Priority)}
	if past.Key != nil {
		inherited = append(inherited, Key(*past.Key))
	}
	s, err := resolve(h.p, append(inherited, opts...))
	if err != nil {
		return nil, err
	}
	fn := h.p.registry.lookup(past.Func)
	if fn == nil && !h.p.opts.ProducerOnly {
		return nil, h.p.registry.unknown(past.Func)
	}
	var args any = past.Args
	if s.hasArgs {
		args = s.args
	}
	raw, err := encodeArgs(fn, args, h.p.opts.MaxArgsBytes)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadArgs, err)
	}
	task, err := h.prepared(past.Func, raw, s, past)
	if err != nil {
		return nil, err
	}
	first, err := h.store.MarkRerun(h.ctx, h.traced(), id, task.model.ID)
	if err != nil {
		return nil, err
	}
	if !first {
		return nil, fmt.Errorf("%w: it has been re-run already", ErrConflict)
	}
	if err := h.insert([]*pendingTask{task}); err != nil {
		return nil, err
	}
	h.created([]*pendingTask{task})
	return task.model, nil
}

func formatTime(t *time.Time) string {
	if t == nil {
		return "an unknown time"
	}
	return t.UTC().Format("2006-01-02 15:04:05Z")
}
