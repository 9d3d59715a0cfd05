package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"runtime"
	"runtime/debug"
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

	base runContext // what ctx begins as
	end  pendingEnd // its outcome, from finish on
}

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
			poke(r.d.slotFree)
		}
	}()
	defer r.cancel(errEnded)
	if r.broken != nil {
		r.finish(r.failure(ReasonBadArgs, r.broken, true))
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
	r.started.Store(true)
	r.abandonIfOver()
	for _, hook := range r.d.p.opts.Hooks {
		r.d.p.guardHook("OnStart", func() {
			if ctx := hook.OnStart(r.ctx, r.task); ctx != nil {
				r.ctx = ctx
			}
		})
	}
	if r.handler.tx {
		r.transactional(args)
		return
	}
	r.guard(func() (any, error) { return r.handler.call(r.ctx, nil, args) },
		func(result any, e ending) { r.finish(r.judge(result, e)) })
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
	e.text = cleanText(e.text, r.d.p.opts.MaxError)
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
	if !r.ended.Load() {
		time.AfterFunc(r.d.p.opts.CancelGrace, func() { r.abandon(cause) })
	}
}

// abandon gives up on a handler that ignores its context. What it does is unknown; its slot stays taken.
func (r *run) abandon(cause error) {
	if r.ended.Load() {
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
	if !r.ended.CompareAndSwap(false, true) {
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

// leftBehind reports whether nothing is to be expected of a run any more, though its handler has not returned.
func (r *run) leftBehind() bool { return r.abandoned.Load() && r.recorded.Load() }

func (r *run) attrs(more ...any) []any {
	return append([]any{"task_id", r.task.ID, "func", r.task.Func, "attempt", r.task.Attempt}, more...)
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
