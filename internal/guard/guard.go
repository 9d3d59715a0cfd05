// Package guard calls code that the application gives the library: hooks, wakers, a backoff,
// marshalers, a logger, a driver. A panic or runtime.Goexit of it, which a test's t.Fatal calls,
// ends neither the process nor a goroutine of the library. It knows nothing of tasks.
package guard

import (
	"errors"
	"fmt"
	"runtime"
)

// ErrGoexit is the error of a call that ended its goroutine.
var ErrGoexit = errors.New("it called runtime.Goexit")

// Panicked is the error that a panic becomes.
type Panicked struct{ Text string }

func (p *Panicked) Error() string { return "panic: " + p.Text }

// Call calls code of the application and returns how it failed, if it did not return: a *Panicked
// or ErrGoexit. The call has its own goroutine, because Goexit would end the caller's.
func Call(call func()) (failed error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		failed = ErrGoexit
		defer func() {
			if v := recover(); v != nil {
				failed = &Panicked{PanicText(v)}
			}
		}()
		call()
		failed = nil
	}()
	<-done
	return failed
}

// ErrDriver is the error of a statement in which the driver panicked.
var ErrDriver = errors.New("the database driver panicked")

// Driver turns a panic, of a driver or of what wraps one, into an ErrDriver of the statement. It is
// deferred.
func Driver(err *error) {
	if v := recover(); v != nil {
		*err = fmt.Errorf("%w: %s", ErrDriver, PanicText(v))
	}
}

// PanicText is the text of a recovered value. It survives the value's own methods.
func PanicText(v any) (text string) {
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

// ErrorText is the text of an error. It survives the error's own methods, and is never empty.
func ErrorText(err error) (text string) {
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

// Error replaces an error whose methods panic, such as a nil pointer in a non-nil error: whatever
// looks into it later, a logger or errors.As, would end the process. look does what else will be
// done with the error.
func Error(err error, look func(error)) (safe error) {
	defer func() {
		if recover() != nil {
			safe = errors.New(ErrorText(err))
		}
	}()
	_ = err.Error()
	var nobody nobodysError // so the whole tree is walked
	_ = errors.As(err, &nobody)
	_ = errors.Is(err, ErrGoexit)
	if look != nil {
		look(err)
	}
	return err
}

type nobodysError struct{}

func (nobodysError) Error() string { return "" }
