package outbox

import (
	"context"
	"database/sql"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox/internal/args"
	"github.com/gorm-outbox/outbox/internal/guard"
)

// handler is a registered function.
type handler struct {
	function    string
	fn          reflect.Value
	param       args.Param
	tx          bool // it takes a *gorm.DB: transactional
	result      bool // it returns more than an error
	plainResult bool // and that has no methods of its own
	idempotent  bool
	isolation   *sql.IsolationLevel // nil means the database's default
}

// repeatable: an interrupted run may be run again without counting.
func (h *handler) repeatable() bool { return h.tx || h.idempotent }

// registry maps functions, by their names, to handlers.
type registry struct {
	mu       sync.RWMutex
	handlers map[string]*handler
	aliases  map[string]string
	sealed   int // Runs in progress: what they can run is already in their process rows
}

// HandlerOption is a choice for Handle, made by Idempotent or Isolation.
type HandlerOption struct{ apply func(*handler) }

// Idempotent says that running the handler again after an interrupted run does no harm: such a run
// then does not count as one of MaxAttempts; the third such run ends the task. Transactional
// handlers are treated so anyway.
func Idempotent() HandlerOption { return HandlerOption{func(h *handler) { h.idempotent = true }} }

// Isolation sets the level of a transactional handler's transaction; the default is the database's.
// The handler cannot set it by itself, because the transaction has begun. A serialization failure
// is run again, see Handle. On SQLite, where every transaction is serializable, it makes no
// difference.
func Isolation(level sql.IsolationLevel) HandlerOption {
	return HandlerOption{func(h *handler) { h.isolation = &level }}
}

// level is what the handler's transaction begins with.
func (h *handler) level() sql.IsolationLevel {
	if h.isolation == nil {
		return sql.LevelDefault
	}
	return *h.isolation
}

// apply sets the options, and says which of them cannot be meant.
func (h *handler) apply(opts []HandlerOption) error {
	for i, o := range opts {
		if o.apply == nil {
			return fmt.Errorf("option %d is a HandlerOption{} that no function of this package made", i)
		}
		o.apply(h)
	}
	if h.isolation == nil {
		return nil
	}
	if !h.tx {
		return fmt.Errorf("Isolation is of a transactional handler's transaction, and this handler takes no *gorm.DB")
	}
	switch *h.isolation {
	case sql.LevelDefault, sql.LevelReadUncommitted, sql.LevelReadCommitted, sql.LevelRepeatableRead, sql.LevelSnapshot, sql.LevelSerializable:
		return nil
	}
	return fmt.Errorf("no supported database has the isolation level %v", *h.isolation)
}

var (
	contextType = reflect.TypeFor[context.Context]()
	gormType    = reflect.TypeFor[*gorm.DB]()
	errorType   = reflect.TypeFor[error]()
	argsType    = reflect.TypeFor[Args]()
)

const signatures = `a handler is one of
	func(context.Context) error
	func(context.Context, A) error
	func(context.Context, *gorm.DB) error
	func(context.Context, *gorm.DB, A) error
or returns (R, error), where A is a struct with JSON tags, a pointer to one, or outbox.Args`

// Handle registers fn under a dotted name, such as "services.OrderSvc.checkAndCancel". fn is
//
//	func(ctx context.Context[, tx *gorm.DB][, args A]) ([R,] error)
//
// where A is a struct with JSON tags, a pointer to one, or Args. With tx it is transactional: it
// runs inside the transaction that finishes the task, so its writes, the task's removal and the
// history row commit together or not at all; when the database asks for it (a serialization
// failure, a deadlock) the transaction is run again at once, up to ten times within the one
// attempt. R, if not nil, is stored as the result, in JSON.
//
// The keys of a task's arguments and the fields of A must match: a key that no field takes, and a
// missing key whose field is neither a pointer nor omitempty or omitzero, is an error. If A has a
// method Validate() error, it is called.
//
// Handle panics on a wiring mistake: a name that is taken or has no valid form, a function of
// another signature, an option that does not go with it, a call while Run is running.
func (p *Plugin) Handle(function string, fn any, opts ...HandlerOption) {
	h, err := newHandler(function, reflect.ValueOf(fn))
	if err == nil {
		err = h.apply(opts)
	}
	if err != nil {
		panic(fmt.Sprintf("outbox: handle %s: %v", function, err))
	}
	p.registry.add(h)
}

// Register registers the named methods of a service: Register("services.OrderSvc", svc,
// "CheckAndCancel") registers svc.CheckAndCancel as "services.OrderSvc.checkAndCancel"; only the
// first letter is lowered. At least one must be named, because a row of the task table must not be
// able to call what nobody meant to expose; none panics with a list of those that fit. It panics on
// wiring mistakes as Handle does.
func (p *Plugin) Register(service string, svc any, methods ...string) {
	v := reflect.ValueOf(svc)
	if !v.IsValid() || v.Kind() == reflect.Pointer && v.IsNil() {
		panic(fmt.Sprintf("outbox: register %s: the service is nil (%T)", service, svc))
	}
	if len(methods) == 0 {
		panic(fmt.Sprintf("outbox: register %s: name the methods to register; those of %T that fit: %s", service, svc, fitting(v)))
	}
	for _, name := range methods {
		m := v.MethodByName(name)
		if !m.IsValid() {
			panic(fmt.Sprintf("outbox: register %s: %T has no method %s; those that fit: %s", service, svc, name, fitting(v)))
		}
		h, err := newHandler(service+"."+lowerFirst(name), m)
		if err != nil {
			panic(fmt.Sprintf("outbox: register %s: method %s of %T: %v", service, name, svc, err))
		}
		p.registry.add(h)
	}
}

// Alias has the handler of the current name run tasks that were created under an old one, so that a
// function can be renamed while its tasks wait. It panics when old is taken or a name has no valid
// form; Run fails when no handler is registered under the current name. After a second renaming
// both old names are aliases of the newest one.
func (p *Plugin) Alias(old, current string) {
	r := &p.registry
	r.mu.Lock()
	defer r.mu.Unlock()
	err := r.free(old)
	if err == nil {
		err = checkName(current)
	}
	if err == nil && old == current {
		err = fmt.Errorf("it is an alias of itself")
	}
	if err != nil {
		panic(fmt.Sprintf("outbox: alias %s: %v", old, err))
	}
	if r.aliases == nil {
		r.aliases = map[string]string{}
	}
	r.aliases[old] = current
}

func newHandler(function string, fn reflect.Value) (*handler, error) {
	if fn.Kind() != reflect.Func || fn.IsNil() {
		return nil, fmt.Errorf("not a function; %s", signatures)
	}
	t := fn.Type()
	fail := func() (*handler, error) { return nil, fmt.Errorf("%s does not fit; %s", t, signatures) }
	h := &handler{function: function, fn: fn}
	if t.IsVariadic() || t.NumIn() == 0 || t.In(0) != contextType {
		return fail()
	}
	in := 1
	if in < t.NumIn() && t.In(in) == gormType {
		h.tx = true
		in++
	}
	if in < t.NumIn() {
		param, ok := args.ParamOf(t.In(in))
		if !ok {
			return fail()
		}
		h.param = param
		in++
	}
	if in != t.NumIn() || t.NumOut() < 1 || t.NumOut() > 2 || t.Out(t.NumOut()-1) != errorType {
		return fail()
	}
	if h.result = t.NumOut() == 2; h.result {
		h.plainResult = args.Plain(t.Out(0))
	}
	return h, nil
}

// call runs the function. A panic goes through.
func (h *handler) call(ctx context.Context, tx *gorm.DB, args reflect.Value) (any, error) {
	in := make([]reflect.Value, 0, 3)
	in = append(in, reflect.ValueOf(ctx))
	if h.tx {
		in = append(in, reflect.ValueOf(tx))
	}
	if h.param.Takes() {
		in = append(in, args)
	}
	out := h.fn.Call(in)
	err, _ := out[len(out)-1].Interface().(error)
	if !h.result {
		return nil, err
	}
	return out[0].Interface(), err
}

// bind reads a task's arguments. It survives the argument type's own methods.
func (h *handler) bind(raw string) (args reflect.Value, err error) {
	if !h.param.CallsMethods() {
		return h.param.Bind([]byte(raw))
	}
	if failed := guard.Call(func() { args, err = h.param.Bind([]byte(raw)) }); failed != nil {
		return reflect.Value{}, failed
	}
	return args, err
}

// encodeResult encodes what a handler returned, in at most limit bytes. It survives the value's own
// methods.
func (h *handler) encodeResult(v any, limit int) (*string, error) {
	var raw JSON
	var err error
	if h.plainResult {
		raw, err = encodeJSON(v)
	} else if failed := guard.Call(func() { raw, err = encodeJSON(v) }); failed != nil {
		err = failed
	}
	if err == nil && len(raw) > limit {
		err = fmt.Errorf("it has %d bytes, over the limit of %d (Options.MaxResultBytes)", len(raw), limit)
	}
	if err == nil {
		err = args.CheckStorable(raw)
	}
	if err != nil {
		return nil, err
	}
	text := string(raw)
	return &text, nil
}

func (r *registry) add(h *handler) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.free(h.function); err != nil {
		panic(fmt.Sprintf("outbox: handle %s: %v", h.function, err))
	}
	if r.handlers == nil {
		r.handlers = map[string]*handler{}
	}
	r.handlers[h.function] = h
}

func (r *registry) free(function string) error {
	if r.sealed > 0 {
		return fmt.Errorf("register before Run")
	}
	if err := checkName(function); err != nil {
		return err
	}
	if r.handlers[function] != nil {
		return fmt.Errorf("the function is registered already")
	}
	if to, ok := r.aliases[function]; ok {
		return fmt.Errorf("the function is an alias of %s already", to)
	}
	return nil
}

// seal forbids registration until unseal, and reports aliases that lead nowhere.
func (r *registry) seal() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, old := range slices.Sorted(maps.Keys(r.aliases)) {
		current := r.aliases[old]
		if next, ok := r.aliases[current]; ok {
			return fmt.Errorf("alias %s: %w: %s is an alias itself, of %s: name the function that a handler is registered under",
				old, ErrUnknownFunc, current, next)
		}
		if r.handlers[current] == nil {
			return fmt.Errorf("alias %s: %w: %s%s", old, ErrUnknownFunc, current, r.suggest(current))
		}
	}
	r.sealed++
	return nil
}

func (r *registry) unseal() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sealed--
}

// lookup finds the handler of a function, through an alias if need be; nil when it has none.
func (r *registry) lookup(function string) *handler {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if h := r.handlers[function]; h != nil {
		return h
	}
	return r.handlers[r.aliases[function]]
}

// names lists the functions that can be run, aliases included, sorted.
func (r *registry) names() []string {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var list []string
	for function := range r.handlers {
		list = append(list, function)
	}
	for old, current := range r.aliases {
		if r.handlers[current] != nil {
			list = append(list, old)
		}
	}
	slices.Sort(list)
	return list
}

// unknown is the error for a function without a handler, with what may have been meant.
func (r *registry) unknown(function string) error {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return fmt.Errorf("%w: register it with Handle or Register before, or set Options.ProducerOnly where another process runs it%s",
		ErrUnknownFunc, r.suggest(function))
}

// suggest lists the registered functions nearest to one, as the end of a sentence.
func (r *registry) suggest(function string) string {
	type near struct {
		function string
		distance int
	}
	var list []near
	for known := range r.handlers {
		d := distance(strings.ToLower(function), strings.ToLower(known))
		if last(function) == last(known) {
			d = min(d, 2)
		}
		if d <= 2+len(function)/4 {
			list = append(list, near{known, d})
		}
	}
	if len(list) == 0 {
		return fmt.Sprintf("; %d functions are registered, none of them like it", len(r.handlers))
	}
	slices.SortFunc(list, func(a, b near) int {
		if a.distance != b.distance {
			return a.distance - b.distance
		}
		return strings.Compare(a.function, b.function)
	})
	var out []string
	for _, n := range list[:min(3, len(list))] {
		out = append(out, n.function)
	}
	return "; did you mean " + strings.Join(out, " or ") + "?"
}

func last(function string) string { return function[strings.LastIndexByte(function, '.')+1:] }

// distance is Levenshtein's.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// checkName: dot-separated names of letters, digits, "_" and "-".
func checkName(function string) error {
	if err := checkText(function, maxName); err != nil {
		return fmt.Errorf("the name %w", err)
	}
	for part := range strings.SplitSeq(function, ".") {
		if part == "" {
			return fmt.Errorf("the name has an empty part")
		}
		for _, c := range part {
			if !unicode.IsLetter(c) && !unicode.IsDigit(c) && c != '_' && c != '-' {
				return fmt.Errorf("the name has a %q; parts are letters, digits, _ and -", c)
			}
		}
	}
	return nil
}

func lowerFirst(s string) string {
	r, n := utf8.DecodeRuneInString(s)
	return string(unicode.ToLower(r)) + s[n:]
}

// fitting lists a service's methods that could be handlers.
func fitting(v reflect.Value) string {
	var list []string
	for i := range v.NumMethod() {
		if _, err := newHandler("", v.Method(i)); err == nil {
			list = append(list, v.Type().Method(i).Name)
		}
	}
	if len(list) == 0 {
		return "none; " + signatures
	}
	return strings.Join(list, ", ")
}
