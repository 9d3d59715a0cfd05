package outbox

import (
	"context"
	"database/sql"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox/internal/dispatch"
)

// Hooks are told what happens to tasks, for logs, metrics and traces. They must be quick and safe
// for concurrent use; a panic in one is logged and changes nothing. Embed NopHooks to implement
// only some.
type Hooks interface {
	// OnCreate is called before the row is inserted, in the creator's transaction, which may still
	// roll back. It may set task.Meta, which goes with the task to its handler and into history,
	// and nothing else: a change of another field fails the creation. An error refuses it.
	//
	// In a re-run task.RerunOf is set, and task.Meta is the finished task's. A key that a hook sets
	// replaces its old text; a key that it leaves out is kept. So a trace may be a new one, but a
	// hook that takes the tenant from ctx must look first whether it is there: ctx belongs to the
	// caller of Rerun.
	OnCreate(ctx context.Context, task *TaskModel) error

	// OnStart is called before the handler. The context that it returns goes to the handler; the
	// task's time limit begins after it. It is also called for a task that ends as bad_args,
	// without a handler.
	OnStart(ctx context.Context, task *TaskModel) context.Context

	// OnFinish is called once for each OnStart: when the outcome is persisted, was refused or could
	// not be recorded, in no particular goroutine. The context has the values of the one that
	// OnStart returned, but does not end with it.
	//
	// No hook is told of a task that is cancelled or parked, that another process rescues, or that
	// is requeued before its handler was called.
	OnFinish(ctx context.Context, task *TaskModel, o Outcome)
}

// Outcome is how one run ended.
type Outcome struct {
	Status   Status        // success or error; empty when the task is pending again
	Reason   Reason        // says more; empty on success, and when the run did not count because the process stops
	Err      error         // what the handler returned; nil after Snooze; ErrClaimLost when the outcome was refused
	Duration time.Duration // of the handler
	Next     time.Duration // until the next attempt, when the task is pending again
}

// NopHooks does nothing; embed it to implement some of Hooks.
type NopHooks struct{}

func (NopHooks) OnCreate(context.Context, *TaskModel) error { return nil }

func (NopHooks) OnStart(ctx context.Context, _ *TaskModel) context.Context { return ctx }

func (NopHooks) OnFinish(context.Context, *TaskModel, Outcome) {}

// Waker carries wake-ups from the process that creates a task to those that dispatch. A wake-up is
// a hint: the scan finds what a lost one leaves.
type Waker interface {
	// Created is called after tasks that are due now have been inserted, with the creator's
	// connection, in its transaction if it has one. An error is logged, once until it works again,
	// and changes nothing: the tasks are inserted, and the scan finds them.
	Created(ctx context.Context, conn gorm.ConnPool, pool *sql.DB) error

	// Listen calls wake whenever tasks may be due, until ctx is done. When it returns before, it is
	// called again after a pause; but not after a Permanent error, which is logged once.
	Listen(ctx context.Context, pool *sql.DB, wake func()) error
}

// TaskFrom gives a handler its task, as it was claimed. It is not to be changed.
func TaskFrom(ctx context.Context) (*TaskModel, bool) {
	t, ok := dispatch.ModelFrom(ctx).(*TaskModel)
	return t, ok
}
