package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/gorm-outbox/outbox/internal/args"
	"github.com/gorm-outbox/outbox/internal/dialect"
	"github.com/gorm-outbox/outbox/internal/text"
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
	phase   atomic.Int32 // what follows is decided by who moves it on
	holds   atomic.Int32 // the slot stays taken until the outcome is durable and the handler has returned
	started atomic.Bool  // the handler is called, or is about to be
	told    atomic.Bool  // the hooks were told of its start
	settled bool         // the claim was lost, which has been reported

	recorded  atomic.Bool // the outcome is durable, or was refused
	abandoned atomic.Bool // the handler ignored the end of its context

	base runContext // what ctx begins as
	end  pendingEnd // its outcome, from finish on
}

// The phases of a run, which never goes back but for one whose COMMIT failed.
const (
	runWaits  int32 = iota // the handler has not been called
	runCalled              // it has been
	runEnded               // an outcome has been given: the handler's, or that it was abandoned
)

// mayCall reports whether the handler may be called: not once an outcome has been given.
func (r *run) mayCall() bool {
	return r.phase.CompareAndSwap(runWaits, runCalled) || r.phase.Load() == runCalled
}

// claimEnd reports whether the caller may give the run's only outcome.
func (r *run) claimEnd() bool {
	return r.phase.CompareAndSwap(runCalled, runEnded) || r.phase.CompareAndSwap(runWaits, runEnded)
}

func (r *run) hasEnded() bool { return r.phase.Load() == runEnded }

// runContext is the context that tells its task.
type runContext struct {
	context.Context
	task *TaskModel
}

func (c *runContext) Value(key any) any {
	if key == (taskKey{}) {
		return c.task
	}
	return c.Context.Value(key)
}

var (
	errShutdown = errors.New("the dispatcher shuts down")
	errTimeout  = fmt.Errorf("the time limit is over: %w", context.DeadlineExceeded)
	errEnded    = errors.New("the run is over")
	errNoReply  = errors.New("the database does not answer")
)

func (d *dispatcher) newRun(c claimed) *run {
	r := &run{d: d, task: c.task, broken: c.err, handler: d.p.registry.lookup(c.task.Func)}
	// It has no parent, which all runs would have to enter and to leave: whoever ends them all knows them.
	r.base.task = c.task
	r.base.Context, r.cancel = context.WithCancelCause(context.Background())
	r.ctx = &r.base
	r.holds.Store(2)
	return r
}

// execute runs the handler and hands the outcome over.
func (r *run) execute() {
	defer func() {
		if r.release() {
			signal(r.d.slotFree)
		}
	}()
	defer r.cancel(errEnded)
	defer r.rescue()
	if r.broken != nil {
		r.unfit(r.broken)
		return
	}
	if !r.mayStart() {
		r.finish(ending{giveBack: true})
		return
	}
	if t := r.task; t.StartedAt != nil && t.RunAt.After(*t.StartedAt) {
		// Somebody has written the start time in a form that the database compares otherwise, as a number sorts before every
		// text on one that takes both. Given back, it has the library's.
		r.d.log.Warn("outbox: the start time was stored in another form, the task waits for it", r.attrs("run_at", t.RunAt)...)
		r.finish(ending{giveBack: true, delay: t.RunAt.Sub(*t.StartedAt)})
		return
	}
	if r.handler == nil {
		// The claim asks for registered functions only; this is a path that the database takes for another's equal.
		r.misfit(errOtherPath)
		return
	}
	args, err := r.bind()
	if err != nil {
		r.misfit(fmt.Errorf("%w: %w", ErrBadArgs, err))
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
	r.tellStart()
	r.began = time.Now()
	if limit := time.Duration(r.task.TimeoutMS) * time.Millisecond; limit > 0 {
		var cancel context.CancelFunc
		r.ctx, cancel = context.WithTimeoutCause(r.ctx, limit, errTimeout)
		defer cancel()
		limited := r.ctx
		stop := context.AfterFunc(limited, func() {
			if cause := context.Cause(limited); errors.Is(cause, errTimeout) {
				r.abandonLater(cause)
			}
		})
		defer stop()
	}
	// As late as can be: the turn, a hook or a frozen process may have taken long.
	if !r.mayStart() {
		r.finish(ending{giveBack: true})
		return
	}
	r.started.Store(true)
	r.abandonIfOver()
	if r.handler.tx {
		r.transactional(args)
		return
	}
	if !r.mayCall() {
		return // its time limit was over before it began
	}
	r.guard(func() (any, error) { return r.handler.call(r.ctx, nil, args) },
		func(result any, e ending) { r.finish(r.judge(result, e)) })
}

// mayStart reports whether the handler may still be called: the process drains otherwise, or the claim is another's.
func (r *run) mayStart() bool {
	return !r.d.draining.Load() && r.base.Err() == nil && r.d.lease.owns(r.task)
}

// tellStart calls the hooks' OnStart. Each has its OnFinish when the run is over.
func (r *run) tellStart() {
	if r.told.Swap(true) {
		return
	}
	for _, hook := range r.d.p.opts.Hooks {
		r.d.p.guardHook("OnStart", func() {
			if ctx := hook.OnStart(r.ctx, r.task); ctx != nil {
				// It is asked here once, where a panic does no harm.
				_, _, _ = ctx.Done(), ctx.Err(), ctx.Value(taskKey{})
				_, _ = ctx.Deadline()
				r.ctx = ctx
			}
		})
	}
}

// rescue is the last line against code of the application that fails where the handler's guard does not reach, such as a
// method of an argument or of an error. It is deferred.
func (r *run) rescue() {
	v := recover()
	if v == nil && r.hasEnded() {
		return
	}
	reason, err := ReasonGoexit, errors.New("code of the application called runtime.Goexit outside of the handler")
	if v != nil {
		reason, err = ReasonPanic, fmt.Errorf("outside of the handler: panic: %s", panicText(v))
	}
	r.d.log.Error("outbox: run was broken off", r.attrs("err", err, "stack", string(debug.Stack()))...)
	switch {
	case r.hasEnded():
	case !r.started.Load():
		r.unfit(fmt.Errorf("%w: %w", ErrBadArgs, err))
	default:
		r.finish(r.failure(reason, err, false))
	}
}

var errOtherPath = errors.New("no handler is registered under exactly this path, which the database takes for equal to another one")

// misfit is for a task that does not fit this process's handler. It may fit another's: in a rolling deploy an old process
// meets arguments that a newer one has made. So the task goes back as long as another live process has the function, for
// about an hour.
func (r *run) misfit(err error) {
	if misfits(r.task) >= maxMisfits || !r.d.othersHave(r.task) {
		r.unfit(err)
		return
	}
	if _, said := r.d.misfits.LoadOrStore(r.task.Func, true); !said {
		r.d.log.Warn("outbox: task does not fit this process, it goes back for another one that has its function; this is logged once a function",
			r.attrs("err", err)...)
	}
	e := r.failure(ReasonBadArgs, err, true)
	e.elsewhere = true
	r.finish(e)
}

// unfit ends a task that no process can run as it is stored.
func (r *run) unfit(err error) {
	r.tellStart()
	r.finish(r.failure(ReasonBadArgs, err, true))
}

// bind survives the argument type's own methods.
func (r *run) bind() (args reflect.Value, err error) {
	if p := r.handler.param; !p.CallsMethods() {
		return p.Bind(r.task.Args)
	}
	if failed := shield(func() { args, err = r.handler.param.Bind(r.task.Args) }); failed != nil {
		return reflect.Value{}, failed
	}
	return args, err
}

// encodeResult survives the result's own methods.
func (h *handler) encodeResult(v any) (raw JSON, err error) {
	if h.plainResult {
		return encodeJSON(v)
	}
	if failed := shield(func() { raw, err = encodeJSON(v) }); failed != nil {
		return nil, failed
	}
	return raw, err
}

// invoke calls the handler and turns whatever it does into an ending.
func (r *run) invoke(call func() (any, error)) (result any, e ending) {
	e = ending{reason: ReasonGoexit, err: errGoexit, text: errGoexit.Error()} // nothing that goes wrong is a success
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.guard(call, func(v any, end ending) { result, e = v, end })
	}()
	<-done
	return result, e
}

// guard calls the handler and gives whatever it does, as an ending, to then. After runtime.Goexit only deferred calls are
// run, so then is one, and nothing may be left to do behind guard that is not.
func (r *run) guard(call func() (any, error), then func(result any, e ending)) {
	var result any
	var e ending
	returned := false
	defer func() {
		if !returned {
			stack := debug.Stack()
			if v := recover(); v != nil {
				text := fmt.Sprintf("panic: %s\n\n%s", panicText(v), stack)
				e = ending{reason: ReasonPanic, err: fmt.Errorf("panic: %s", panicText(v)), text: text}
			} else {
				e = ending{reason: ReasonGoexit, err: errors.New("the handler called runtime.Goexit")}
				e.text = e.err.Error()
			}
		}
		e.duration = time.Since(r.began)
		then(result, e)
	}()
	var err error
	result, err = call()
	if err != nil {
		e = ending{reason: ReasonFailed, err: tame(err), text: errorText(err)}
	}
	returned = true
}

// judge adds to an ending what the run's context and the result say.
func (r *run) judge(result any, e ending) ending {
	switch {
	case e.reason == ReasonFailed && is[*snoozeError](e.err):
		e.reason = ReasonSnoozed
	case e.reason == ReasonFailed && is[*permanentError](e.err):
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
	e.text = text.Sanitize(e.text, r.d.p.opts.MaxError)
	return e
}

// is reports whether err is or wraps an E.
func is[E error](err error) bool {
	var e E
	return errors.As(err, &e)
}

// encodeResult stores a result, or says why it could not: the handler's work is done either way.
func (r *run) encodeResult(result any, e ending) ending {
	if v := reflect.ValueOf(result); v.Kind() == reflect.Pointer && v.IsNil() {
		return e
	}
	raw, err := r.handler.encodeResult(result)
	if err == nil && len(raw) > r.d.p.opts.MaxResult {
		err = fmt.Errorf("it has %d bytes, over the limit of %d (Options.MaxResult)", len(raw), r.d.p.opts.MaxResult)
	}
	if err == nil {
		err = args.Check(raw)
	}
	if err != nil {
		e.reason, e.text = ReasonBadResult, fmt.Sprintf("the result of type %T was not stored: %v", result, err)
		return e
	}
	e.result = raw
	return e
}

func (r *run) failure(reason Reason, err error, final bool) ending {
	return ending{reason: reason, err: err, text: text.Sanitize(errorText(err), r.d.p.opts.MaxError), final: final,
		duration: r.since()}
}

func (r *run) since() time.Duration {
	if r.began.IsZero() {
		return 0
	}
	return time.Since(r.began)
}

// abandonIfOver is called when a shutdown has ended the contexts, and when the handler is about to start: whichever is later
// sees both.
func (r *run) abandonIfOver() {
	if r.started.Load() && r.base.Err() != nil && errors.Is(context.Cause(&r.base), errShutdown) {
		r.abandonLater(errShutdown)
	}
}

// abandonLater is called when the run's context has ended because of its time limit or a shutdown: the handler has the grace
// to return. After a lost claim nobody waits for it: the claim is another's by now, or will be.
func (r *run) abandonLater(cause error) {
	if !r.hasEnded() {
		time.AfterFunc(r.d.p.opts.CancelGrace, func() { r.abandon(cause) })
	}
}

// abandon gives up on a handler that ignores its context. What it does is unknown; its slot stays taken.
func (r *run) abandon(cause error) {
	if r.hasEnded() {
		return
	}
	reason, final := ReasonInterrupted, false
	if errors.Is(cause, errTimeout) {
		reason, final = ReasonTimeout, true
	}
	e := r.failure(reason, fmt.Errorf("%w, and the handler has not returned: the outcome is unknown", cause), final)
	r.d.log.Warn("outbox: handler ignores its context", r.attrs("cause", cause)...)
	r.abandoned.Store(true)
	r.finish(e)
}

// finish hands over the run's only outcome; a later one is refused.
func (r *run) finish(e ending) {
	if !r.claimEnd() {
		r.d.log.Warn("outbox: handler returned after its task was given up", r.attrs("duration", r.since())...)
		return
	}
	r.end = pendingEnd{run: r, ending: e, verdict: decide(r.task, e, r.d.backoff)}
	r.d.finisher.add(&r.end)
}

// durable is called when the outcome is written, or refused for good.
func (r *run) durable(e ending, v verdict, lost bool) {
	f := Finish{Reason: e.reason, Err: e.err, Duration: e.duration, Next: v.next}
	switch {
	case lost:
		if r.started.Load() {
			r.d.noteRun(r.task)
		}
		f.Reason, f.Err = ReasonInterrupted, ErrClaimLost
		r.d.log.Warn("outbox: claim lost, outcome refused", r.attrs()...)
	case v.requeue != nil && e.reason == ReasonSnoozed:
		f.Err = nil
		r.d.log.Debug("outbox: task snoozes", r.attrs("in", v.next)...)
	case v.requeue != nil && e.elsewhere:
		r.d.log.Debug("outbox: task goes back for another process", r.attrs("err", e.err, "in", v.next)...)
	case v.requeue != nil && e.reason != ReasonNone:
		r.d.log.Warn("outbox: task failed, will be tried again", r.attrs("err", e.err, "in", v.next)...)
	case v.requeue != nil:
		r.d.log.Debug("outbox: task goes back", r.attrs("in", v.next, "err", e.err)...)
	case v.outcome.Status == string(StatusError):
		f.Status = StatusError
		r.d.log.Error("outbox: task ended as error", r.attrs("reason", e.reason, "err", e.err, "duration", e.duration)...)
	default:
		f.Status = StatusSuccess
		if r.d.log.Enabled(r.ctx, slog.LevelDebug) {
			r.d.log.Debug("outbox: task done", r.attrs("duration", e.duration)...)
		}
	}
	r.over(f)
	if r.started.Load() {
		r.d.ran.Add(1)
	}
	r.recorded.Store(true)
	r.release()
}

// over tells the hooks how the run ended, if they know that it began.
func (r *run) over(f Finish) {
	r.cancel(errEnded) // the outcome may be durable before execute returns
	if !r.told.Load() {
		return
	}
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

// leftBehind reports whether nothing is to be expected of a run any more, though its handler has not returned.
func (r *run) leftBehind() bool { return r.abandoned.Load() && r.recorded.Load() }

func (r *run) attrs(more ...any) []any {
	return append([]any{"task_id", r.task.ID, "func", r.task.Func, "attempt", r.task.Attempt}, more...)
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
