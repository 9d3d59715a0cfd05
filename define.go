package outbox

import (
	"context"
	"fmt"
	"reflect"
	"slices"

	"gorm.io/gorm"
)

// Definition ties a function's name to the type of its arguments, so that the compiler checks both
// its creators and its handler. It is a value: make it once with Define, and share it.
type Definition[A any] struct {
	function string
	opts     []CreateOption
}

// Define names a function whose arguments are A, a struct with JSON tags or Args. The options apply
// to each Create, before its own. It panics when the name has no valid form, A is of another kind,
// or an option can never be valid.
func Define[A any](function string, opts ...CreateOption) Definition[A] {
	if err := checkName(function); err != nil {
		panic(fmt.Sprintf("outbox: define %s: %v", function, err))
	}
	if t := reflect.TypeFor[A](); t != argsType && t.Kind() != reflect.Struct {
		panic(fmt.Sprintf("outbox: define %s: the arguments are %s; they must be a struct with JSON tags or outbox.Args", function, t))
	}
	if _, err := resolve(nil, opts); err != nil {
		panic(fmt.Sprintf("outbox: define %s: %v", function, err))
	}
	return Definition[A]{function: function, opts: slices.Clone(opts)}
}

// Function is the function's dotted name.
func (d Definition[A]) Function() string { return d.function }

// Create is the function Create with the definition's function, arguments and options. Where the
// function is not registered (Options.ProducerOnly), it still calls Validate, if A has it.
func (d Definition[A]) Create(tx *gorm.DB, args A, opts ...CreateOption) (*TaskModel, error) {
	return Create(tx, d.function, args, append(d.opts[:len(d.opts):len(d.opts)], opts...)...)
}

// New is an element for CreateBatch.
func (d Definition[A]) New(args A, opts ...CreateOption) NewTask {
	return NewTask{Func: d.function, Args: args, Options: append(d.opts[:len(d.opts):len(d.opts)], opts...)}
}

// Handle registers an ordinary handler; see Plugin.Handle.
func (d Definition[A]) Handle(p *Plugin, fn func(context.Context, A) error, opts ...HandlerOption) {
	p.Handle(d.function, fn, opts...)
}

// HandleResult registers an ordinary handler that returns a result; see Plugin.Handle.
func HandleResult[A, R any](d Definition[A], p *Plugin, fn func(context.Context, A) (R, error), opts ...HandlerOption) {
	p.Handle(d.function, fn, opts...)
}

// HandleTxResult registers a transactional handler that returns a result; see Plugin.Handle.
func HandleTxResult[A, R any](d Definition[A], p *Plugin, fn func(context.Context, *gorm.DB, A) (R, error), opts ...HandlerOption) {
	p.Handle(d.function, fn, opts...)
}

// HandleTx registers a transactional handler; see Plugin.Handle.
func (d Definition[A]) HandleTx(p *Plugin, fn func(context.Context, *gorm.DB, A) error, opts ...HandlerOption) {
	p.Handle(d.function, fn, opts...)
}
