package outbox

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"time"

	"github.com/gorm-outbox/outbox/internal/dialect"
)

// maxTxTries of a transaction, or of a statement outside of one, that the database asks to run again.
const maxTxTries = 10

// transactional runs the handler inside the transaction that finishes the task.
func (r *run) transactional(args reflect.Value) {
	for try := 1; ; try++ {
		e, v, again := r.try(args)
		if again && try < maxTxTries && r.ctx.Err() == nil {
			_ = pauseBeforeTry(r.ctx, try)
			continue
		}
		if r.settled {
			return
		}
		if v == nil {
			if e.undone != "" {
				e = r.undone(e)
			}
			r.finish(e)
			return
		}
		r.durable(e, *v, false)
		return
	}
}

// try is one transaction. With a verdict the outcome is durable; otherwise the transaction is undone.
func (r *run) try(args reflect.Value) (e ending, durable *verdict, again bool) {
	s := r.d.store
	// The handler was not called.
	infrastructure := func(err error) (ending, *verdict, bool) {
		class := dialect.Classify(err)
		passes := class == dialect.Retry || class == dialect.Busy || class == dialect.Lost || err == errNoReply
		return ending{undone: stepBegin, passes: passes, err: err}, nil, class == dialect.Retry
	}
	// On a connection that is half open no reply ever comes. The handler has its Timeout; what is done around it has this.
	ctx, giveUp := context.WithCancelCause(r.ctx)
	defer giveUp(errEnded)
	limit := max(r.d.p.opts.HeartbeatLimit, time.Second)
	watch := time.AfterFunc(limit, func() { giveUp(errNoReply) })
	defer watch.Stop()
	over, err := s.lockWriter(ctx)
	if err != nil {
		return infrastructure(err)
	}
	over = sync.OnceFunc(over)
	defer over()
	defer context.AfterFunc(r.ctx, over)() // the transaction ends then, whether the handler returns or not
	tx, err := s.pool.BeginTx(ctx, &sql.TxOptions{Isolation: r.handler.level()})
	if err != nil {
		return infrastructure(err)
	}
	defer dialect.RollBack(ctx, s.d, tx)
	if err := s.d.Begin(ctx, tx); err != nil {
		return infrastructure(err)
	}
	if _, err := tx.ExecContext(ctx, "SAVEPOINT "+runSavepoint); err != nil {
		return infrastructure(err)
	}
	if !watch.Stop() {
		return infrastructure(errNoReply)
	}
	r.d.outages.recovered(stepBegin)
	// As late as can be: all this may have taken long.
	if !r.mayStart() || !r.mayCall() {
		return ending{giveBack: true}, nil, false
	}
	guard := &guardedTx{Tx: tx, s: s}
	db := s.handlerDB(r.ctx, guard)
	result, e := r.invoke(func() (any, error) { return r.handler.call(r.ctx, db, args) })
	guard.close()
	watch.Reset(limit)
	if e.reason == ReasonNone && guard.ended.Load() {
		e = r.failure(ReasonTransaction, ErrTxGuarded, false)
	}
	if e.reason == ReasonFailed && r.ctx.Err() == nil && dialect.Classify(e.err) == dialect.Lost {
		// Was it this transaction's connection that was lost, or something of the handler's own?
		if _, err := tx.ExecContext(ctx, "SAVEPOINT "+runSavepoint); dialect.Classify(err) == dialect.Lost && r.ctx.Err() == nil {
			return r.cutOff(e), nil, false
		}
	}
	if e.reason != ReasonNone {
		_ = s.d.End(ctx, tx.Rollback)
		again := e.reason == ReasonFailed && dialect.Classify(e.err) == dialect.Retry
		if e.reason == ReasonFailed && dialect.ReadOnly(e.err) {
			r.d.renew()
			again = true
		}
		return r.judge(nil, e), nil, again
	}
	// The handler may have returned because its context has ended, before those that were made from it, such as this
	// transaction's, have.
	err = r.ctx.Err()
	if err == nil {
		// A savepoint that is gone shows that the transaction was ended, or undone by the database after an error that the
		// handler swallowed; whatever the handler wrote since then would have been committed by itself.
		_, err = tx.ExecContext(ctx, "RELEASE SAVEPOINT "+runSavepoint)
	}
	if err != nil {
		_ = s.d.End(ctx, tx.Rollback)
		return r.unreleased(ctx, e, err), nil, false
	}
	e = r.judge(result, e)
	v := decide(r.task, e, r.d.backoff)
	moved, err := s.d.Move(ctx, s.work(tx), dialect.FromRunning, []dialect.Outcome{*v.outcome})
	if err != nil {
		return r.unfinished(ctx, e, err)
	}
	if len(moved) == 0 {
		_ = s.d.End(ctx, tx.Rollback)
		r.lost()
		return ending{}, nil, false
	}
	if !r.claimEnd() {
		return e, nil, false // abandoned: the transaction must not commit after another outcome was given
	}
	if err := s.d.End(ctx, tx.Commit); err != nil {
		committed, away := false, false
		if class := dialect.Classify(err); class == dialect.Lost || errors.Is(err, sql.ErrTxDone) {
			committed, away = r.inDoubt(*v.outcome)
		}
		if !committed {
			r.phase.Store(runCalled)
			e, v, again := r.unfinished(ctx, e, err)
			e.away = away
			return e, v, again
		}
	}
	r.d.outages.recovered(stepFinish)
	return e, &v, false
}

// unreleased: the savepoint that was set before the handler ran cannot be released after it.
func (r *run) unreleased(ctx context.Context, e ending, err error) ending {
	switch class := dialect.Classify(err); {
	case r.ctx.Err() != nil:
		return r.cutShort(e)
	case context.Cause(ctx) == errNoReply:
		e.err = errNoReply
		return r.cutOff(e)
	case class == dialect.Lost:
		e.err = err
		return r.cutOff(e)
	case class == dialect.Undone:
		return r.failure(ReasonTransaction, fmt.Errorf(
			"the database has undone the transaction after an error that the handler swallowed, nothing of it stays: %w", err), false)
	}
	return r.failure(ReasonTransaction, fmt.Errorf("the transaction was ended while the handler ran, by a statement of its own or after an error that it swallowed;"+
		" if that was a COMMIT, what the handler had written stays and cannot be taken back: %w", err), true)
}

// cutShort: the run's context ended before its transaction did.
func (r *run) cutShort(e ending) ending {
	return r.judge(nil, ending{reason: ReasonFailed, err: r.ctx.Err(), text: errorText(context.Cause(r.ctx)), duration: e.duration})
}

// cutOff: the connection went while the handler ran. Nothing has lasted, but the handler may be the cause, so it counts as
// a crash.
func (r *run) cutOff(e ending) ending {
	return r.failure(ReasonInterrupted, fmt.Errorf("the transaction's connection was lost: %w", e.err), false)
}

const runSavepoint = "outbox_run"

// unfinished: the finishing statements failed, so the transaction is undone.
func (r *run) unfinished(ctx context.Context, e ending, err error) (ending, *verdict, bool) {
	if context.Cause(ctx) == errNoReply {
		e.err = errNoReply // not for ever: what the handler did may be why it takes so long
		return r.cutOff(e), nil, false
	}
	class := dialect.Classify(err)
	switch {
	case class == dialect.Retry:
		return r.failure(ReasonTransaction, err, false), nil, true
	case r.ctx.Err() != nil:
		return r.cutShort(e), nil, false
	case class == dialect.Data || class == dialect.Other:
		return r.failure(ReasonTransaction, fmt.Errorf("commit: %w", err), false), nil, false
	}
	return ending{undone: stepFinish, err: err, duration: e.duration}, nil, false
}

const (
	stepBegin  = "begin a handler's transaction"
	stepFinish = "finish a handler's transaction"
)

// undone decides about a transaction that did not begin or could not be finished. An outage is waited for, however long: the
// run does not count. While the database works the task itself is the cause; so that it does not go round for ever, that
// counts as a crash.
func (r *run) undone(e ending) ending {
	back := ending{giveBack: true, delay: time.Second, err: e.err, duration: e.duration}
	if r.ctx.Err() != nil && !errors.Is(context.Cause(r.ctx), errTimeout) {
		return back // a shutdown, or a claim that was lost
	}
	if e.passes || e.away || !r.d.canWrite() {
		r.d.outages.failed(e.undone, e.err)
		return back
	}
	e = r.failure(ReasonTransaction, fmt.Errorf("%s: %w", e.undone, e.err), false)
	e.crash = true
	return e
}

// canWrite reports whether the database takes what this process writes now.
func (d *dispatcher) canWrite() bool {
	ctx, cancel := context.WithTimeout(d.writeCtx, d.statementLimit())
	defer cancel()
	alive, err := d.store.beat(ctx, d.lease.owner())
	return err == nil && alive
}

// lost ends a run whose claim is another's.
func (r *run) lost() {
	r.settled = true
	if r.claimEnd() {
		r.durable(ending{duration: r.since()}, verdict{}, true)
	}
}

// inDoubt finds out whether a COMMIT whose reply was lost took effect. Locking the task's row waits for the transaction in
// question: if the row is there then, nothing was committed; if it is gone, history tells. away says that the database
// could not be asked at first.
func (r *run) inDoubt(o dialect.Outcome) (committed, away bool) {
	ctx := context.WithoutCancel(r.ctx)
	for {
		committed, err := r.d.store.committed(ctx, o)
		if err == nil || wait(r.d.writeCtx, 500*time.Millisecond) != nil {
			return committed, away || err != nil
		}
		away = true
	}
}
