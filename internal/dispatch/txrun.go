package dispatch

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"time"

	"github.com/gorm-outbox/outbox/internal/dialect"
	"github.com/gorm-outbox/outbox/internal/guard"
)

// txEnd is how one try of a transactional run ended.
type txEnd int

const (
	txCommitted  txEnd = iota // the handler's work and its outcome are persisted
	txRolledBack              // nothing of the handler's work lasts; the outcome is to be written
	txNotBegun                // the database kept the handler from being called
	txNotEnded                // the database kept the transaction from ending
	txClaimLost               // the task is another process's
)

// txTry is one try of a transactional run.
type txTry struct {
	end        txEnd
	result     result
	transition transition // of txCommitted
	retry      bool       // the database asks for another try
	passes     bool       // of txNotBegun: the error is one that passes
	away       bool       // of txNotEnded: the database could not be reached meanwhile
}

// runInTransaction runs the handler inside the transaction that finishes the task.
func (r *run) runInTransaction(args reflect.Value) {
	var try txTry
	for n := 1; ; n++ {
		if try = r.tryTransaction(args); !try.retry || n >= MaxTries || r.ctx.Err() != nil {
			break
		}
		_ = PauseBeforeTry(r.ctx, n)
	}
	switch try.end {
	case txCommitted:
		r.settleTx(&completion{result: try.result, transition: try.transition, ran: true}, false)
	case txRolledBack:
		r.finish(try.result)
	case txNotBegun:
		r.finish(r.blocked(stepBegin, try))
	case txNotEnded:
		r.finish(r.blocked(stepFinish, try))
	case txClaimLost:
		if _, _, ok := r.state.on(onEnd); ok {
			r.settleTx(&completion{result: result{duration: r.since()}, ran: true}, true)
		}
	}
}

// settleTx is settle for an outcome that the completer does not write.
func (r *run) settleTx(c *completion, lost bool) {
	r.settle(c, lost)
	r.d.wakeups.add(slotFreed)
}

// tryTransaction is one transaction.
func (r *run) tryTransaction(args reflect.Value) txTry {
	s := r.d.store
	notBegun := func(err error) txTry {
		class := dialect.Classify(err)
		passes := class == dialect.Retry || class == dialect.Busy || class == dialect.Lost || err == errNoReply
		return txTry{end: txNotBegun, result: result{err: err}, passes: passes, retry: class == dialect.Retry}
	}
	// On a connection that is half open no reply ever comes. The handler has its Timeout; what is
	// done around it has this.
	ctx, giveUp := context.WithCancelCause(r.ctx)
	defer giveUp(errEnded)
	limit := max(r.d.cfg.HeartbeatLimit, time.Second)
	watch := time.AfterFunc(limit, func() { giveUp(errNoReply) })
	defer watch.Stop()
	unlock, err := s.LockWriter(ctx)
	if err != nil {
		return notBegun(err)
	}
	unlock = sync.OnceFunc(unlock)
	defer unlock()
	defer context.AfterFunc(r.ctx, unlock)() // the transaction ends then, whether the handler returns or not
	tx, err := s.Pool.BeginTx(ctx, &sql.TxOptions{Isolation: r.handler.Isolation})
	if err != nil {
		return notBegun(err)
	}
	defer dialect.RollBack(ctx, s.Dialect, tx)
	if err := s.Dialect.Begin(ctx, tx); err != nil {
		return notBegun(err)
	}
	if _, err := tx.ExecContext(ctx, "SAVEPOINT "+runSavepoint); err != nil {
		return notBegun(err)
	}
	if !watch.Stop() {
		return notBegun(errNoReply)
	}
	r.d.outages.recovered(stepBegin)
	// As late as can be: all this may have taken long.
	if !r.mayStart() || !r.mayCall() {
		return txTry{end: txRolledBack, result: result{giveBack: true}}
	}
	handle := &Tx{Tx: tx, dialect: s.Dialect}
	value, res := r.invoke(func() (any, error) { return r.handler.Call(r.ctx, handle, args) })
	handle.close()
	watch.Reset(limit)
	if res.reason == ReasonNone && handle.ended.Load() {
		res = r.failure(ReasonTransaction, ErrTxGuarded, false)
	}
	if res.reason == ReasonFailed && r.ctx.Err() == nil && dialect.Classify(res.err) == dialect.Lost {
		// Was it this transaction's connection that was lost, or something of the handler's own?
		if _, err := tx.ExecContext(ctx, "SAVEPOINT "+runSavepoint); dialect.Classify(err) == dialect.Lost && r.ctx.Err() == nil {
			return rolledBack(r.cutOff(res))
		}
	}
	if res.reason != ReasonNone {
		_ = s.Dialect.End(ctx, tx.Rollback)
		try := rolledBack(r.judge(nil, res))
		try.retry = res.reason == ReasonFailed && dialect.Classify(res.err) == dialect.Retry
		if res.reason == ReasonFailed && dialect.ReadOnly(res.err) {
			r.d.renew()
			try.retry = true
		}
		return try
	}
	// The handler may have returned because its context has ended, before those that were made from
	// it, such as this transaction's, have.
	err = r.ctx.Err()
	if err == nil {
		// A savepoint that is gone shows that the transaction was ended, or undone by the database
		// after an error that the handler swallowed; whatever the handler wrote since then would
		// have been committed by itself.
		_, err = tx.ExecContext(ctx, "RELEASE SAVEPOINT "+runSavepoint)
	}
	if err != nil {
		_ = s.Dialect.End(ctx, tx.Rollback)
		return rolledBack(r.notReleased(ctx, res, err))
	}
	res = r.judge(value, res)
	t := decide(r.task, res, r.d.cfg.Backoff)
	through, err := s.CompleteIn(ctx, tx, *t.outcome)
	if err != nil {
		return r.notEnded(ctx, res, err)
	}
	if !through {
		return txTry{end: txClaimLost}
	}
	if _, _, ok := r.state.on(onEnd); !ok {
		return rolledBack(res) // given up: the transaction must not commit after another outcome was given
	}
	if err := r.commit(ctx, tx); err != nil {
		committed, away := false, false
		if class := dialect.Classify(err); class == dialect.Lost || errors.Is(err, sql.ErrTxDone) || errors.Is(err, guard.ErrDriver) {
			committed, away = r.inDoubt(*t.outcome)
		}
		if !committed {
			r.state.on(onReopen)
			try := r.notEnded(ctx, res, err)
			try.away = away
			return try
		}
	}
	r.d.outages.recovered(stepFinish)
	return txTry{end: txCommitted, result: res, transition: t}
}

// commit survives a driver that panics. Its run has ended, so no other guard would.
func (r *run) commit(ctx context.Context, tx *sql.Tx) (err error) {
	defer func() {
		if errors.Is(err, guard.ErrDriver) {
			_ = r.d.store.Dialect.End(ctx, tx.Rollback) // if the COMMIT was not sent
		}
	}()
	defer guard.Driver(&err)
	return r.d.store.Dialect.End(ctx, tx.Commit)
}

func rolledBack(res result) txTry { return txTry{end: txRolledBack, result: res} }

// notReleased: the savepoint that was set before the handler ran cannot be released after it.
func (r *run) notReleased(ctx context.Context, res result, err error) result {
	switch class := dialect.Classify(err); {
	case r.ctx.Err() != nil:
		return r.cutShort(res)
	case context.Cause(ctx) == errNoReply:
		res.err = errNoReply
		return r.cutOff(res)
	case class == dialect.Lost:
		res.err = err
		return r.cutOff(res)
	case class == dialect.Undone:
		return r.failure(ReasonTransaction, fmt.Errorf(
			"the database has undone the transaction after an error that the handler swallowed, nothing of it stays: %w", err), false)
	}
	return r.failure(ReasonTransaction, fmt.Errorf("the transaction was ended while the handler ran, by a statement of its own or after an error that it swallowed;"+
		" if that was a COMMIT, what the handler had written stays and cannot be taken back: %w", err), true)
}

// cutShort: the run's context ended before its transaction did.
func (r *run) cutShort(res result) result {
	return r.judge(nil, result{reason: ReasonFailed, err: r.ctx.Err(), text: guard.ErrorText(context.Cause(r.ctx)), duration: res.duration})
}

// cutOff: the connection went while the handler ran. Nothing has lasted, but the handler may be the
// cause, so it counts as a crash.
func (r *run) cutOff(res result) result {
	return r.failure(ReasonInterrupted, fmt.Errorf("the transaction's connection was lost: %w", res.err), false)
}

const runSavepoint = "outbox_run"

// notEnded: the finishing statements failed, so the transaction is undone.
func (r *run) notEnded(ctx context.Context, res result, err error) txTry {
	if context.Cause(ctx) == errNoReply {
		res.err = errNoReply // bounded, for the handler may be the reason
		return rolledBack(r.cutOff(res))
	}
	class := dialect.Classify(err)
	switch {
	case class == dialect.Retry:
		try := rolledBack(r.failure(ReasonTransaction, err, false))
		try.retry = true
		return try
	case r.ctx.Err() != nil:
		return rolledBack(r.cutShort(res))
	case class == dialect.Data || class == dialect.Other:
		return rolledBack(r.failure(ReasonTransaction, fmt.Errorf("commit: %w", err), false))
	}
	return txTry{end: txNotEnded, result: result{err: err, duration: res.duration}}
}

// The steps of a transactional run, as the log has them.
const (
	stepBegin  = "begin a handler's transaction"
	stepFinish = "finish a handler's transaction"
)

// blocked decides about a transaction that did not begin or could not be ended. An outage is waited
// for, however long: the run does not count. While the database works the task itself is the cause;
// so that it does not go round for ever, that counts as a crash.
func (r *run) blocked(step string, try txTry) result {
	err := try.result.err
	back := result{giveBack: true, delay: time.Second, err: err, duration: try.result.duration}
	if r.ctx.Err() != nil && !errors.Is(context.Cause(r.ctx), errTimeout) {
		return back // a shutdown, or a claim that was lost
	}
	if try.passes || try.away || !r.d.canWrite() {
		r.d.outages.failed(step, err)
		return back
	}
	res := r.failure(ReasonTransaction, fmt.Errorf("%s: %w", step, err), false)
	res.crash = true
	return res
}

// canWrite reports whether the database takes what this process writes now.
func (d *dispatcher) canWrite() bool {
	ctx, cancel := context.WithTimeout(d.writeCtx, d.cfg.statementLimit())
	defer cancel()
	alive, err := d.store.Beat(ctx, d.lease.owner())
	return err == nil && alive
}

// inDoubt finds out whether a COMMIT whose reply was lost took effect. Locking the task's row waits
// for the transaction in question: if the row is there then, nothing was committed; if it is gone,
// history tells. away says that the database could not be asked at first.
func (r *run) inDoubt(o dialect.Outcome) (committed, away bool) {
	ctx := context.WithoutCancel(r.ctx)
	for {
		committed, err := r.d.store.Committed(ctx, o)
		if err == nil || dialect.Wait(r.d.writeCtx, 500*time.Millisecond) != nil {
			return committed, away || err != nil
		}
		away = true
	}
}
