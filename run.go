package outbox

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorm-outbox/outbox/internal/dialect"
)

// run is one claimed task in its slot.
type run struct {
	d       *dispatcher
	task    *TaskModel
	broken  error // the row could not be read
	handler *handler
	ctx     context.Context
	cancel  context.CancelCauseFunc
	began   time.Time
	ended   atomic.Bool  // an outcome has been given: the handler's, or that it was abandoned
	holds   atomic.Int32 // the slot stays taken until the outcome is durable and the handler has returned
	started atomic.Bool
	settled bool // the claim was lost, which has been reported

	recorded  atomic.Bool // the outcome is durable, or was refused
	abandoned atomic.Bool // the handler ignored the end of its context
}

var (
	errShutdown = errors.New("the dispatcher shuts down")
	errTimeout  = fmt.Errorf("the time limit is over: %w", context.DeadlineExceeded)
	errEnded    = errors.New("the run is over")
	errNoReply  = errors.New("the database does not answer")
)

func (d *dispatcher) newRun(c claimed) *run {
	r := &run{d: d, task: c.task, broken: c.err, handler: d.p.registry.lookup(c.task.Func)}
	r.ctx, r.cancel = context.WithCancelCause(d.runCtx)
	r.holds.Store(2)
	return r
}

// execute runs the handler in its goroutine and hands the outcome over.
func (r *run) execute() {
	defer func() {
		if r.release() {
			poke(r.d.slotFree)
		}
	}()
	defer r.cancel(errEnded)
	if r.broken != nil {
		r.finish(r.failure(ReasonBadArgs, r.broken, true))
		return
	}
	if r.handler == nil {
		// The claim asks for registered functions only; this is a path that the database takes for another's equal.
		r.finish(ending{giveBack: true, delay: time.Minute})
		return
	}
	if r.d.draining.Load() || !r.d.stillOurs(r.task) {
		r.finish(ending{giveBack: true})
		return
	}
	args, err := r.bind()
	if err != nil {
		r.finish(r.failure(ReasonBadArgs, fmt.Errorf("%w: %w", ErrBadArgs, err), true))
		return
	}
	if r.handler.tx && r.d.txTurn != nil {
		select {
		case r.d.txTurn <- struct{}{}:
			defer func() { <-r.d.txTurn }()
		case <-r.d.drain:
			r.finish(ending{giveBack: true})
			return
		}
	}
	r.began = time.Now()
	r.started.Store(true)
	if limit := time.Duration(r.task.TimeoutMS) * time.Millisecond; limit > 0 {
		var cancel context.CancelFunc
		r.ctx, cancel = context.WithTimeoutCause(r.ctx, limit, errTimeout)
		defer cancel()
	}
	r.ctx = context.WithValue(r.ctx, taskKey{}, r.task)
	for _, hook := range r.d.p.opts.Hooks {
		r.d.p.guardHook("OnStart", func() {
			if ctx := hook.OnStart(r.ctx, r.task); ctx != nil {
				r.ctx = ctx
			}
		})
	}
	stop := context.AfterFunc(r.ctx, r.abandonLater)
	defer stop()
	if r.handler.tx {
		r.transactional(args)
		return
	}
	result, e := r.invoke(func() (any, error) { return r.handler.call(r.ctx, nil, args) })
	r.finish(r.judge(result, e))
}

// bind survives the panics of the argument type's own methods.
func (r *run) bind() (args reflect.Value, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("panic: %s", panicText(v))
		}
	}()
	return r.handler.bind(r.task.Args)
}

// encodeSafely survives the panics of the result's own methods.
func encodeSafely(v any) (raw JSON, err error) {
	defer func() {
		if v := recover(); v != nil {
			raw, err = nil, fmt.Errorf("panic: %s", panicText(v))
		}
	}()
	return encodeJSON(v)
}

// invoke calls the handler and turns whatever it does into an ending.
func (r *run) invoke(call func() (any, error)) (result any, e ending) {
	returned := false
	done := make(chan struct{})
	// The handler needs no goroutine of its own to survive runtime.Goexit: deferred calls run then too. But what comes
	// after the call would not, so the call is the last thing that its goroutine does.
	go func() {
		defer close(done)
		defer func() {
			if returned {
				return
			}
			stack := debug.Stack()
			if v := recover(); v != nil {
				text := fmt.Sprintf("panic: %s\n\n%s", panicText(v), stack)
				e = ending{reason: ReasonPanic, err: fmt.Errorf("panic: %s", panicText(v)), text: text}
				return
			}
			e = ending{reason: ReasonGoexit, err: errors.New("the handler called runtime.Goexit")}
			e.text = e.err.Error()
		}()
		var err error
		result, err = call()
		if err != nil {
			e = ending{reason: ReasonFailed, err: tame(err), text: errorText(err)}
		}
		returned = true
	}()
	<-done
	e.duration = time.Since(r.began)
	return result, e
}

// judge adds to an ending what the run's context and the result say.
func (r *run) judge(result any, e ending) ending {
	var permanent *permanentError
	var snooze *snoozeError
	switch {
	case e.reason == ReasonFailed && errors.As(e.err, &snooze):
	case e.reason == ReasonFailed && errors.As(e.err, &permanent):
		e.reason, e.final = ReasonPermanent, true
	case e.reason == ReasonFailed && r.ctx.Err() != nil:
		cause := context.Cause(r.ctx)
		switch {
		case errors.Is(cause, errTimeout) && errors.Is(e.err, context.DeadlineExceeded):
			e.reason = ReasonTimeout
		case !errors.Is(cause, errShutdown) && !errors.Is(cause, ErrClaimLost):
		case r.handler.repeatable():
			return ending{giveBack: true, duration: e.duration, err: e.err}
		case errors.Is(e.err, context.Canceled):
			e.reason = ReasonInterrupted
		}
	case e.reason == ReasonNone && result != nil:
		e = r.encodeResult(result, e)
	}
	e.text = cleanText(e.text, r.d.p.opts.MaxError)
	return e
}

// encodeResult stores a result, or says why it could not: the handler's work is done either way.
func (r *run) encodeResult(result any, e ending) ending {
	if v := reflect.ValueOf(result); v.Kind() == reflect.Pointer && v.IsNil() {
		return e
	}
	raw, err := encodeSafely(result)
	if err == nil && len(raw) > r.d.p.opts.MaxResult {
		err = fmt.Errorf("it has %d bytes, over the limit of %d (Options.MaxResult)", len(raw), r.d.p.opts.MaxResult)
	}
	if err == nil {
		err = checkJSON(raw, nil)
	}
	if err != nil {
		e.reason, e.text = ReasonBadResult, fmt.Sprintf("the result of type %T was not stored: %v", result, err)
		return e
	}
	e.result = raw
	return e
}

func (r *run) failure(reason Reason, err error, final bool) ending {
	return ending{reason: reason, err: err, text: cleanText(errorText(err), r.d.p.opts.MaxError), final: final,
		duration: r.since()}
}

func (r *run) since() time.Duration {
	if r.began.IsZero() {
		return 0
	}
	return time.Since(r.began)
}

// abandonLater is called when the run's context ends: the handler has the grace to return.
func (r *run) abandonLater() {
	if r.ended.Load() {
		return
	}
	cause := context.Cause(r.ctx)
	time.AfterFunc(r.d.p.opts.CancelGrace, func() { r.abandon(cause) })
}

// abandon gives up on a handler that ignores its context. What it does is unknown; its slot stays taken.
func (r *run) abandon(cause error) {
	var e ending
	switch {
	case errors.Is(cause, errTimeout):
		e = r.failure(ReasonTimeout, fmt.Errorf("%w, and the handler has not returned: the outcome is unknown", cause), true)
	case errors.Is(cause, errShutdown):
		e = r.failure(ReasonInterrupted, fmt.Errorf("%w, and the handler has not returned: the outcome is unknown", cause), false)
	default:
		return // the claim is another's by now, or will be
	}
	if r.ended.Load() {
		return
	}
	r.d.log.Warn("outbox: handler ignores its context", r.attrs("cause", cause)...)
	r.abandoned.Store(true)
	r.finish(e)
}

// finish hands over the run's only outcome; a later one is refused.
func (r *run) finish(e ending) {
	if !r.ended.CompareAndSwap(false, true) {
		r.d.log.Warn("outbox: handler returned after its task was given up", r.attrs("duration", r.since())...)
		return
	}
	v := decide(r.task, e, r.d.backoff)
	r.d.finisher.add(&pendingEnd{run: r, ending: e, verdict: v})
}

// durable is called when the outcome is written, or refused for good.
func (r *run) durable(e ending, v verdict, lost bool) {
	f := Finish{Reason: e.reason, Err: e.err, Duration: e.duration, Next: v.next}
	switch {
	case lost:
		r.d.mu.Lock()
		r.d.hadRun[r.task.ID] = true
		r.d.mu.Unlock()
		f.Reason, f.Err = ReasonInterrupted, ErrClaimLost
		r.d.log.Warn("outbox: claim lost, outcome refused", r.attrs()...)
	case v.requeue != nil && e.reason != ReasonNone:
		r.d.log.Warn("outbox: task failed, will be tried again", r.attrs("err", e.err, "in", v.next)...)
	case v.requeue != nil:
		r.d.log.Debug("outbox: task goes back", r.attrs("in", v.next)...)
	case v.outcome.Status == string(StatusError):
		f.Status = StatusError
		r.d.log.Error("outbox: task ended as error", r.attrs("reason", e.reason, "err", e.err, "duration", e.duration)...)
	default:
		f.Status = StatusSuccess
		r.d.log.Debug("outbox: task done", r.attrs("duration", e.duration)...)
	}
	r.over(f)
	if r.started.Load() {
		r.d.ran.Add(1)
	}
	r.recorded.Store(true)
	r.release()
}

// over tells the hooks how the run ended.
func (r *run) over(f Finish) {
	r.cancel(errEnded) // the outcome may be durable before execute returns
	for _, hook := range r.d.p.opts.Hooks {
		r.d.p.guardHook("OnFinish", func() { hook.OnFinish(r.ctx, r.task, f) })
	}
}

// release frees the slot with the second call: one is the outcome's, one the handler's.
func (r *run) release() bool {
	if r.holds.Add(-1) > 0 {
		return false
	}
	r.d.free(r)
	return true
}

func (r *run) attrs(more ...any) []any {
	return append([]any{"task_id", r.task.ID, "func", r.task.Func, "attempt", r.task.Attempt}, more...)
}

// maxTxTries of a transaction that the database asks to run again.
const maxTxTries = 10

// transactional runs the handler inside the transaction that finishes the task.
func (r *run) transactional(args reflect.Value) {
	for try := 1; ; try++ {
		e, v, again := r.try(args)
		if again && try < maxTxTries && r.ctx.Err() == nil {
			// As many as there are contenders may collide again if they return together.
			_ = wait(r.ctx, DefaultBackoff(1)>>max(0, 7-try))
			continue
		}
		if r.settled {
			return
		}
		if v == nil {
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
	infrastructure := func(err error) (ending, *verdict, bool) {
		// Nothing of the run has lasted, and it is not the handler's fault.
		return ending{giveBack: true, delay: time.Second, err: err}, nil, dialect.Classify(err) == dialect.Retry
	}
	// On a connection that is half open no reply ever comes. The handler has its Timeout; what is done around it has this.
	ctx, giveUp := context.WithCancelCause(r.ctx)
	defer giveUp(errEnded)
	limit := max(r.d.p.opts.HeartbeatLimit, time.Second)
	watch := time.AfterFunc(limit, func() { giveUp(errNoReply) })
	defer watch.Stop()
	over, err := s.takeTurn(ctx)
	if err != nil {
		return infrastructure(err)
	}
	over = sync.OnceFunc(over)
	defer over()
	defer context.AfterFunc(r.ctx, over)() // the transaction ends then, whether the handler returns or not
	tx, err := s.pool.BeginTx(ctx, &sql.TxOptions{Isolation: r.handler.isolation})
	if err != nil {
		return infrastructure(err)
	}
	defer tx.Rollback()
	if err := s.d.Begin(ctx, tx); err != nil {
		return infrastructure(err)
	}
	if _, err := tx.ExecContext(ctx, "SAVEPOINT "+runSavepoint); err != nil {
		return infrastructure(err)
	}
	if !watch.Stop() {
		return infrastructure(errNoReply)
	}
	guard := &guardedTx{Tx: tx, s: s}
	db := s.handlerDB(r.ctx, guard)
	result, e := r.invoke(func() (any, error) { return r.handler.call(r.ctx, db, args) })
	guard.closed.Store(true)
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
		tx.Rollback()
		return r.judge(nil, e), nil, e.reason == ReasonFailed && dialect.Classify(e.err) == dialect.Retry
	}
	// A savepoint that is gone shows that the transaction was ended, or undone by the database after an error that the
	// handler swallowed; whatever the handler wrote since then would have been committed by itself.
	if _, err := tx.ExecContext(ctx, "RELEASE SAVEPOINT "+runSavepoint); err != nil {
		tx.Rollback()
		return r.unreleased(ctx, e, err), nil, false
	}
	e = r.judge(result, e)
	v := decide(r.task, e, r.d.backoff)
	moved, err := s.d.Move(ctx, tx, dialect.FromRunning, []dialect.Outcome{*v.outcome})
	if err != nil {
		return r.unfinished(ctx, e, err)
	}
	if len(moved) == 0 {
		tx.Rollback()
		r.lost()
		return ending{}, nil, false
	}
	if !r.ended.CompareAndSwap(false, true) {
		return e, nil, false // abandoned: the transaction must not commit after another outcome was given
	}
	if err := tx.Commit(); err != nil {
		committed := false
		if class := dialect.Classify(err); class == dialect.Lost || errors.Is(err, sql.ErrTxDone) {
			committed = r.inDoubt(*v.outcome)
		}
		if !committed {
			r.ended.Store(false)
			return r.unfinished(ctx, e, err)
		}
	}
	return e, &v, false
}

// unreleased: the savepoint that was set before the handler ran cannot be released after it.
func (r *run) unreleased(ctx context.Context, e ending, err error) ending {
	switch class := dialect.Classify(err); {
	case r.ctx.Err() != nil:
		e = ending{reason: ReasonFailed, err: r.ctx.Err(), text: errorText(context.Cause(r.ctx)), duration: e.duration}
		return r.judge(nil, e)
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
	switch dialect.Classify(err) {
	case dialect.Retry:
		return r.failure(ReasonTransaction, err, false), nil, true
	case dialect.Data, dialect.Other:
		if r.ctx.Err() == nil {
			return r.failure(ReasonTransaction, fmt.Errorf("commit: %w", err), false), nil, false
		}
	}
	return ending{giveBack: true, delay: time.Second, err: err, duration: e.duration}, nil, false
}

// lost ends a run whose claim is another's.
func (r *run) lost() {
	r.settled = true
	if r.ended.CompareAndSwap(false, true) {
		r.durable(ending{duration: r.since()}, verdict{}, true)
	}
}

// inDoubt finds out whether a COMMIT whose reply was lost took effect. Locking the task's row waits for the transaction in
// question: if the row is there then, nothing was committed; if it is gone, history tells.
func (r *run) inDoubt(o dialect.Outcome) bool {
	ctx := context.WithoutCancel(r.ctx)
	for {
		committed, err := r.d.store.committed(ctx, o)
		if err == nil || wait(r.d.writeCtx, 500*time.Millisecond) != nil {
			return committed
		}
	}
}

func panicText(v any) (text string) {
	defer func() {
		if recover() != nil {
			text = fmt.Sprintf("a %T whose text panics", v)
		}
	}()
	if _, ok := v.(*runtime.PanicNilError); ok {
		return "nil"
	}
	if err, ok := v.(error); ok {
		return err.Error()
	}
	return fmt.Sprint(v)
}

// tame replaces an error whose methods panic, such as a nil pointer in a non-nil error: whoever looks into it later, a
// logger or errors.As, would take the process down.
func tame(err error) (safe error) {
	defer func() {
		if recover() != nil {
			safe = errors.New(errorText(err))
		}
	}()
	_ = err.Error()
	var nobody nobodysError // so the whole tree is walked
	_ = errors.As(err, &nobody)
	_ = errors.Is(err, errEnded)
	_ = dialect.Classify(err)
	return err
}

type nobodysError struct{}

func (nobodysError) Error() string { return "" }

func errorText(err error) (text string) {
	defer func() {
		if recover() != nil {
			text = fmt.Sprintf("an error of type %T whose text panics", err)
		}
	}()
	if text = err.Error(); text == "" {
		text = fmt.Sprintf("an error of type %T without a text", err)
	}
	return text
}
