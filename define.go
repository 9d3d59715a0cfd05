package outbox

import (
	"context"
	"fmt"
	"reflect"
	"slices"

	"gorm.io/gorm"
)

// Definition ties a path to the type of its arguments, so that the compiler checks both its creators and its handler.
// It is a value: make it once with Define, and share it.
type Definition[A any] struct {
	path string
	opts []Option
}

// Define names a function whose arguments are A, a struct with JSON tags or Args. The options apply to each Create,
// before its own. It panics when the path has no valid form, A is of another kind, or an option is none of Create's or can
// never be valid.
func Define[A any](path string, opts ...Option) Definition[A] {
	if err := checkPath(path); err != nil {
		panic(fmt.Sprintf("outbox: define %s: %v", path, err))
	}
	if t := reflect.TypeFor[A](); t != argsType && t.Kind() != reflect.Struct {
		panic(fmt.Sprintf("outbox: define %s: the arguments are %s; they must be a struct with JSON tags or outbox.Args", path, t))
	}
	if _, err := resolve(nil, opts, createOptions...); err != nil {
		panic(fmt.Sprintf("outbox: define %s: %v", path, err))
	}
	return Definition[A]{path: path, opts: slices.Clone(opts)}
}

// Path is the dotted path.
func (d Definition[A]) Path() string { return d.path }

// Create is the function Create with the definition's path, arguments and options. Where no handler of the path is
// registered (Options.ProducerOnly), it still calls Validate, if A has it.
func (d Definition[A]) Create(tx *gorm.DB, args A, opts ...Option) (*TaskModel, error) {
	return Create(tx, d.path, args, append(d.opts[:len(d.opts):len(d.opts)], opts...)...)
}

// New is an element for CreateBatch.
func (d Definition[A]) New(args A, opts ...Option) NewTask {
	return NewTask{Func: d.path, Args: args, Options: append(d.opts[:len(d.opts):len(d.opts)], opts...)}
}

// Handle registers an ordinary handler; see Plugin.Handle.
func (d Definition[A]) Handle(p *Plugin, fn func(context.Context, A) error, opts ...HandlerOption) {
	p.Handle(d.path, fn, opts...)
}

// HandleTx registers a transactional handler; see Plugin.Handle.
func (d Definition[A]) HandleTx(p *Plugin, fn func(context.Context, *gorm.DB, A) error, opts ...HandlerOption) {
	p.Handle(d.path, fn, opts...)
}
