package dispatch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorm-outbox/outbox/internal/dialect"
	"github.com/gorm-outbox/outbox/internal/guard"
	"github.com/gorm-outbox/outbox/internal/store"
	"github.com/gorm-outbox/outbox/internal/text"
)

// run is one claimed task in its slot.
type run struct {
	d       *dispatcher
	task    *store.Task
	broken  error     // the row could not be read
	handler *Function // nil when this process has none of that name
	ctx     context.Context
	cancel  context.CancelCauseFunc
	began   time.Time
	state   runState
	told    atomic.Bool // the hooks were told of its start
	givenUp atomic.Bool // its outcome was not recorded, because the process stops

	base       runContext // what ctx begins as
	completion completion // its outcome, from finish on
}

// transactional reports whether the handler runs in the transaction that finishes its task.
func (r *run) transactional() bool { return r.handler != nil && r.handler.Transactional }

// runContext is the context that tells its task.
type runContext struct {
	context.Context
	task  *store.Task
	cfg   *Config
	once  sync.Once
	model any
}

type taskKey struct{}

func (c *runContext) Value(key any) any {
	if key == (taskKey{}) {
		return c.asModel()
	}
	return c.Context.Value(key)
}

// asModel is the API's model of the task, made once.
func (c *runContext) asModel() any {
	c.once.Do(func() { c.model = c.cfg.Model(c.task) })
	return c.model
}

// ModelFrom is the API's model of the task that ctx was made for, or nil.
func ModelFrom(ctx context.Context) any { return ctx.Value(taskKey{}) }

var (
	errShutdown = errors.New("the dispatcher shuts down")
	errTimeout  = fmt.Errorf("the time limit is over: %w", context.DeadlineExceeded)
	errEnded    = errors.New("the run is over")
	errNoReply  = errors.New("the database does not answer")
)

func (d *dispatcher) newRun(c store.Claimed) *run {
	r := &run{d: d, task: c.Task, broken: c.Err, handler: d.cfg.Functions[c.Task.Func]}
	// It has no parent that ends, which all runs would have to enter and to leave: what ends them
	// all knows them.
	r.base.task, r.base.cfg = c.Task, &d.cfg
	r.base.Context, r.cancel = context.WithCancelCause(d.values)
	r.ctx = &r.base
	return r
}

// execute runs the handler and hands the outcome over.
func (r *run) execute() {
	defer r.returned()
	defer r.cancel(errEnded)
	defer r.catch()
	if r.broken != nil {
		r.unfit(r.broken)
		return
	}
	if !r.mayStart() {
		r.finish(result{giveBack: true})
		return
	}
	if t := r.task; t.StartedAt != nil && t.RunAt.After(*t.StartedAt) {
		// Another program has written the start time in a form that the database compares
		// otherwise, as a number sorts before every text on one that takes both. Given back, it has
		// the library's.
		r.d.log.Warn("outbox: the start time was stored in another form, the task waits for it", r.attrs("run_at", t.RunAt)...)
		r.finish(result{giveBack: true, delay: t.RunAt.Sub(*t.StartedAt)})
		return
	}
	if r.handler == nil {
		// The claim asks for registered functions only; this is a path that the database takes for
		// another's equal.
		r.misfit(errOtherPath)
		return
	}
	args, err := r.handler.Bind(r.task.Args)
	if err != nil {
		r.misfit(fmt.Errorf("%w: %w", ErrBadArgs, err))
		return
	}
	if r.transactional() && r.d.txTurn != nil {
		select {
		case r.d.txTurn <- struct{}{}:
			defer func() { <-r.d.txTurn }()
		case <-r.d.drain:
			r.finish(result{giveBack: true})
			return
		}
	}
	r.tellStart()
	r.began = time.Now()
	if limit := time.Duration(r.task.TimeoutMS) * time.Millisecond; limit > 0 {
		var cancel context.CancelFunc
		r.ctx, cancel = context.WithTimeoutCause(r.ctx, limit, errTimeout)
		defer cancel()
		limited := r.ctx
		stop := context.AfterFunc(limited, func() {
			if cause := context.Cause(limited); errors.Is(cause, errTimeout) {
				r.giveUpLater(cause)
			}
		})
		defer stop()
	}
	// As late as can be: the turn, a hook or a frozen process may have taken long.
	if !r.mayStart() {
		r.finish(result{giveBack: true})
		return
	}
	r.state.on(onStart)
	r.giveUpIfOver()
	if r.transactional() {
		r.runInTransaction(args)
		return
	}
	if !r.mayCall() {
		return // its time limit was over before it began
	}
	r.callHandler(func() (any, error) { return r.handler.Call(r.ctx, nil, args) },
		func(value any, res result) { r.finish(r.judge(value, res)) })
}

// mayStart reports whether the handler may still be called: not while the process drains, and not
// when the claim is lost.
func (r *run) mayStart() bool {
	return !r.d.draining.Load() && r.base.Err() == nil && r.d.lease.owns(r.task)
}

// mayCall reports whether the handler may be called: not once the run was given up.
func (r *run) mayCall() bool {
	_, _, ok := r.state.on(onCall)
	return ok
}

// tellStart tells the observer that the run starts, once. over tells it the end.
func (r *run) tellStart() {
	if r.d.cfg.Observer == nil || r.told.Swap(true) {
		return
	}
	if ctx := r.d.cfg.Observer.Started(r.ctx, r.base.asModel()); ctx != nil {
		r.ctx = ctx
	}
}

// catch is the last line against code of the application that fails where the handler's guard does
// not reach, such as a method of an argument or of an error. It is deferred.
func (r *run) catch() {
	v, ended := recover(), r.state.ended()
	if v == nil && ended {
		return
	}
	reason, err := ReasonGoexit, errors.New("code of the application called runtime.Goexit outside of the handler")
	if v != nil {
		reason, err = ReasonPanic, fmt.Errorf("outside of the handler: panic: %s", guard.PanicText(v))
	}
	r.d.log.Error("outbox: run was broken off", r.attrs("err", err, "stack", string(debug.Stack()))...)
	switch {
	case ended:
	case r.state.is() == runQueued:
		r.unfit(fmt.Errorf("%w: %w", ErrBadArgs, err))
	default:
		r.finish(r.failure(reason, err, false))
	}
}

var errOtherPath = errors.New("no handler is registered under exactly this path, which the database takes for equal to another one")

// misfit is for a task that does not fit this process's handler. It may fit another's: in a rolling
// deploy an old process meets arguments that a newer one has made. So the task is requeued as long
// as another live process has the function, for about an hour.
func (r *run) misfit(err error) {
	if misfits(r.task) >= maxMisfits || !r.d.othersHave(r.task) {
		r.unfit(err)
		return
	}
	if _, said := r.d.misfits.LoadOrStore(r.task.Func, true); !said {
		r.d.log.Warn("outbox: task does not fit this process, it goes back for another one that has its function; this is logged once a function",
			r.attrs("err", err)...)
	}
	res := r.failure(ReasonBadArgs, err, true)
	res.elsewhere = true
	r.finish(res)
}

// othersHave reports whether another process with a row may run a task. Where that cannot be found
// out, it may.
func (d *dispatcher) othersHave(t *store.Task) bool {
	ctx, cancel := context.WithTimeout(d.writeCtx, d.cfg.statementLimit())
	defer cancel()
	found := false
	err := d.store.Others(ctx, d.lease.owner(), func(functions, queues []string) {
		found = found || slices.Contains(functions, t.Func) && (queues == nil || slices.Contains(queues, t.Queue))
	})
	return found || err != nil
}

// unfit ends a task that no process can run as it is stored.
func (r *run) unfit(err error) {
	r.tellStart()
	r.finish(r.failure(ReasonBadArgs, err, true))
}

// invoke calls the handler and turns whatever it does into a result.
func (r *run) invoke(call func() (any, error)) (value any, res result) {
	res = result{reason: ReasonGoexit, err: guard.ErrGoexit, text: guard.ErrGoexit.Error()} // nothing that goes wrong is a success
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.callHandler(call, func(v any, of result) { value, res = v, of })
	}()
	<-done
	return value, res
}

// callHandler calls the handler and gives whatever it does, as a result, to then. After
// runtime.Goexit only deferred calls are run, so then is one; what follows a call of callHandler
// may not run.
func (r *run) callHandler(call func() (any, error), then func(value any, res result)) {
	var value any
	var res result
	returned := false
	defer func() {
		if !returned {
			stack := debug.Stack()
			if v := recover(); v != nil {
				text := fmt.Sprintf("panic: %s\n\n%s", guard.PanicText(v), stack)
				res = result{reason: ReasonPanic, err: fmt.Errorf("panic: %s", guard.PanicText(v)), text: text}
			} else {
				res = result{reason: ReasonGoexit, err: errors.New("the handler called runtime.Goexit")}
				res.text = res.err.Error()
			}
		}
		res.duration = time.Since(r.began)
		then(value, res)
	}()
	var err error
	value, err = call()
	if err != nil {
		res = result{reason: ReasonFailed, err: sanitizeError(err), text: guard.ErrorText(err)}
	}
	returned = true
}

// judge adds to a result what the run's context and the returned value say.
func (r *run) judge(value any, res result) result {
	switch {
	case res.reason == ReasonFailed && is[*SnoozeError](res.err):
		res.reason = ReasonSnoozed
	case res.reason == ReasonFailed && is[*PermanentError](res.err):
		res.reason, res.final = ReasonPermanent, true
	case res.reason == ReasonFailed && r.ctx.Err() != nil:
		cause := context.Cause(r.ctx)
		switch {
		case errors.Is(cause, errTimeout) && errors.Is(res.err, context.DeadlineExceeded):
			res.reason = ReasonTimeout
		case !errors.Is(cause, errShutdown) && !errors.Is(cause, ErrClaimLost):
		case r.handler.Repeatable:
			return result{giveBack: true, duration: res.duration, err: res.err}
		case errors.Is(res.err, context.Canceled):
			res.reason = ReasonInterrupted
		}
	case res.reason == ReasonNone && value != nil:
		res = r.encodeValue(value, res)
	}
	res.text = text.Sanitize(res.text, r.d.cfg.MaxError)
	return res
}

// is reports whether err is or wraps an E.
func is[E error](err error) bool {
	var e E
	return errors.As(err, &e)
}

// encodeValue stores what the handler returned, or says why it could not: the handler's work is
// done either way.
func (r *run) encodeValue(value any, res result) result {
	if v := reflect.ValueOf(value); v.Kind() == reflect.Pointer && v.IsNil() {
		return res
	}
	raw, err := r.handler.Encode(value)
	if err != nil {
		res.reason, res.text = ReasonBadResult, fmt.Sprintf("the result of type %T was not stored: %v", value, err)
		return res
	}
	res.value = raw
	return res
}

func (r *run) failure(reason string, err error, final bool) result {
	return result{reason: reason, err: err, text: text.Sanitize(guard.ErrorText(err), r.d.cfg.MaxError), final: final,
		duration: r.since()}
}

func (r *run) since() time.Duration {
	if r.began.IsZero() {
		return 0
	}
	return time.Since(r.began)
}

// giveUpIfOver is called when a shutdown has ended the contexts, and when the handler is about to
// start: whichever is later sees both.
func (r *run) giveUpIfOver() {
	if s := r.state.is(); (s == runStarting || s == runRunning) && r.base.Err() != nil && errors.Is(context.Cause(&r.base), errShutdown) {
		r.giveUpLater(errShutdown)
	}
}

// giveUpLater is called when the run's context has ended because of its time limit or a shutdown:
// the handler has the grace to return. After a lost claim nothing waits for it: the claim is
// another's by now, or will be.
func (r *run) giveUpLater(cause error) {
	if !r.state.ended() {
		time.AfterFunc(r.d.cfg.CancelGrace, func() { r.giveUp(cause) })
	}
}

// giveUp ends the run of a handler that ignores its context. What the handler does is unknown; its
// slot stays taken.
func (r *run) giveUp(cause error) {
	from, _, ok := r.state.on(onGiveUp)
	if !ok {
		return
	}
	reason, final := ReasonInterrupted, false
	if errors.Is(cause, errTimeout) {
		reason, final = ReasonTimeout, true
	}
	res := r.failure(reason, fmt.Errorf("%w, and the handler has not returned: the outcome is unknown", cause), final)
	r.d.log.Warn("outbox: handler still running after its deadline", r.attrs("cause", cause)...)
	r.complete(res, from)
}

// finish hands over the run's only outcome; a later one is refused.
func (r *run) finish(res result) {
	from, _, ok := r.state.on(onEnd)
	if !ok {
		r.d.log.Warn("outbox: handler returned after its task was given up", r.attrs("duration", r.since())...)
		return
	}
	r.complete(res, from)
}

// complete gives the completer the outcome of a run that has ended.
func (r *run) complete(res result, from runStage) {
	r.completion = completion{run: r, result: res, transition: decide(r.task, res, r.d.cfg.Backoff), ran: from != runQueued}
	r.d.completer.add(&r.completion)
}

// settle is called when the outcome is written, or was refused because the claim is lost.
func (r *run) settle(c *completion, lost bool) {
	res, t := c.result, c.transition
	f := End{Reason: res.reason, Err: res.err, Duration: res.duration, Next: t.next}
	switch {
	case lost:
		if c.ran {
			r.d.recovery.outcomeLost(r.task)
		}
		f.Reason, f.Err = ReasonInterrupted, ErrClaimLost
		r.d.log.Warn("outbox: claim lost, outcome refused", r.attrs()...)
	case t.requeue != nil && res.reason == ReasonSnoozed:
		f.Err = nil
		r.d.log.Debug("outbox: task snoozes", r.attrs("in", t.next)...)
	case t.requeue != nil && res.elsewhere:
		r.d.log.Debug("outbox: task requeued for another process", r.attrs("err", res.err, "in", t.next)...)
	case t.requeue != nil && res.reason != ReasonNone:
		r.d.log.Warn("outbox: task failed, retrying", r.attrs("err", res.err, "in", t.next)...)
	case t.requeue != nil:
		r.d.log.Debug("outbox: task requeued", r.attrs("in", t.next, "err", res.err)...)
	case t.outcome.Status == store.Error:
		f.Status = store.Error
		r.d.log.Error("outbox: task ended as error", r.attrs("reason", res.reason, "err", res.err, "duration", res.duration)...)
	default:
		f.Status = store.Success
		if r.d.log.Enabled(r.ctx, slog.LevelDebug) {
			r.d.log.Debug("outbox: task done", r.attrs("duration", res.duration)...)
		}
	}
	r.over(f)
	if c.ran {
		r.d.ran.Add(1)
	}
	r.release()
}

// over tells the observer how the run ended, if it knows that it began.
func (r *run) over(e End) {
	r.cancel(errEnded) // the outcome may be persisted before execute returns
	if r.told.Load() {
		r.d.cfg.Observer.Ended(r.ctx, r.base.asModel(), e)
	}
}

// release frees the slot, unless the handler is stuck in it.
func (r *run) release() {
	if _, to, ok := r.state.on(onPersist); ok && to == runReleased {
		r.d.slots.done(r)
	}
}

// returned is called when the goroutine that called the handler is done with the run. A stuck
// handler frees its slot so.
func (r *run) returned() {
	if _, to, ok := r.state.on(onReturn); ok && to == runReleased {
		r.d.slots.done(r)
		r.d.wakeups.add(slotFreed)
	}
}

// leftBehind reports whether nothing is to be expected of a run any more, though its handler has
// not returned.
func (r *run) leftBehind() bool { return r.state.is() == runLeftBehind }

func (r *run) attrs(more ...any) []any {
	return append([]any{"task_id", r.task.ID, "func", r.task.Func, "attempt", r.task.Attempt}, more...)
}

// sanitizeError is an error of the application's whose methods do not panic.
func sanitizeError(err error) error {
	return guard.Error(err, func(err error) {
		_ = errors.Is(err, errEnded)
		_ = dialect.Classify(err)
	})
}
