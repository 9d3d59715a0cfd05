package outbox

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox/internal/args"
)

// panics gives the text that f panics with; empty when it does not.
func panics(f func()) (text string) {
	defer func() {
		if v := recover(); v != nil {
			text = fmt.Sprint(v)
		}
	}()
	f()
	return ""
}

// contains says which of some texts are missing.
func contains(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("%q is not in %q", p, text)
		}
	}
}

type payArgs struct{ ID int }

func TestHandleTakes(t *testing.T) {
	for _, c := range []struct {
		name                   string
		fn                     any
		args                   reflect.Type
		tx, result, repeatable bool
	}{
		{"a context", func(context.Context) error { return nil }, nil, false, false, false},
		{"a struct", func(context.Context, payArgs) error { return nil }, reflect.TypeFor[payArgs](), false, false, false},
		{"a pointer", func(context.Context, *payArgs) error { return nil }, reflect.TypeFor[*payArgs](), false, false, false},
		{"Args", func(context.Context, Args) error { return nil }, argsType, false, false, false},
		{"a transaction", func(context.Context, *gorm.DB) error { return nil }, nil, true, false, true},
		{"everything", func(context.Context, *gorm.DB, Args) (int, error) { return 0, nil }, argsType, true, true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := New(Options{})
			p.Handle("a.b", c.fn)
			h := p.registry.lookup("a.b")
			if h == nil || h.param != paramOf(c.args) || h.tx != c.tx || h.result != c.result || h.repeatable() != c.repeatable {
				t.Errorf("got %+v", h)
			}
		})
	}
	t.Run("idempotent", func(t *testing.T) {
		p := New(Options{})
		p.Handle("a.b", func(context.Context) error { return nil }, Idempotent())
		if h := p.registry.lookup("a.b"); !h.repeatable() || h.tx {
			t.Errorf("got %+v", h)
		}
	})
}

func TestHandlePanics(t *testing.T) {
	ok := func(context.Context) error { return nil }
	for _, c := range []struct {
		name, path string
		fn         any
		want       string
	}{
		{"no function", "a.b", nil, "outbox: handle a.b: not a function"},
		{"a nil function", "a.b", (func(context.Context) error)(nil), "not a function"},
		{"something else", "a.b", 7, "not a function"},
		{"no context", "a.b", func(Args) error { return nil }, "func(map[string]interface {}) error does not fit"},
		{"no parameters", "a.b", func() error { return nil }, "does not fit"},
		{"no error", "a.b", func(context.Context) {}, "does not fit"},
		//lint:ignore ST1008 it is to be refused
		{"an error that is not the last", "a.b", func(context.Context) (error, int) { return nil, 0 }, "does not fit"},
		{"three results", "a.b", func(context.Context) (int, int, error) { return 0, 0, nil }, "does not fit"},
		{"arguments that are a text", "a.b", func(context.Context, string) error { return nil }, "does not fit"},
		{"arguments that are another map", "a.b", func(context.Context, map[string]string) error { return nil }, "does not fit"},
		{"a pointer to a pointer", "a.b", func(context.Context, **payArgs) error { return nil }, "does not fit"},
		{"the arguments before the transaction", "a.b", func(context.Context, payArgs, *gorm.DB) error { return nil }, "does not fit"},
		{"two arguments", "a.b", func(context.Context, payArgs, payArgs) error { return nil }, "does not fit"},
		{"variadic", "a.b", func(context.Context, ...payArgs) error { return nil }, "does not fit"},
		{"no path", "", ok, "the name is empty"},
		{"an empty part", "a..b", ok, "empty part"},
		{"a space", "a b", ok, `the name has a ' '`},
		{"a quote", "a'b", ok, `parts are letters, digits, _ and -`},
		{"a long path", strings.Repeat("x", 256), ok, "has 256 bytes; at most 255"},
		{"a path that is taken", "taken", ok, "outbox: handle taken: the function is registered already"},
		{"a path that is an alias", "old", ok, "the function is an alias of taken already"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := New(Options{})
			p.Handle("taken", ok)
			p.Alias("old", "taken")
			text := panics(func() { p.Handle(c.path, c.fn) })
			contains(t, text, "outbox: handle "+c.path, c.want)
			if strings.Contains(c.want, "fit") {
				contains(t, text, "func(context.Context, *gorm.DB, A) error")
			}
		})
	}
	tx := func(context.Context, *gorm.DB) error { return nil }
	for _, c := range []struct {
		name string
		fn   any
		opt  HandlerOption
		want string
	}{
		{"an option that nobody made", ok, HandlerOption{}, "option 0 is a HandlerOption{} that no function of this package made"},
		{"isolation of an ordinary handler", ok, Isolation(sql.LevelSerializable), "Isolation is of a transactional handler's transaction"},
		{"the default isolation of an ordinary handler", ok, Isolation(sql.LevelDefault), "Isolation is of a transactional handler's transaction"},
		{"a level that no database has", tx, Isolation(sql.LevelLinearizable), "no supported database has the isolation level Linearizable"},
		{"a level that is none", tx, Isolation(99), "no supported database has the isolation level"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := New(Options{})
			contains(t, panics(func() { p.Handle("a.b", c.fn, c.opt) }), "outbox: handle a.b: ", c.want)
			if p.registry.lookup("a.b") != nil {
				t.Error("it is registered all the same")
			}
		})
	}
	t.Run("while Run runs", func(t *testing.T) {
		p := New(Options{})
		if err := p.registry.seal(); err != nil {
			t.Fatal(err)
		}
		contains(t, panics(func() { p.Handle("a.b", ok) }), "outbox: handle a.b: register before Run")
		contains(t, panics(func() { p.Alias("a.b", "c") }), "outbox: alias a.b: register before Run")
		p.registry.unseal()
		p.Handle("a.b", ok)
	})
}

type service struct{ calls []string }

func (s *service) CheckAndCancel(_ context.Context, a payArgs) error {
	s.calls = append(s.calls, fmt.Sprint("check ", a.ID))
	return nil
}

func (s *service) URLFetch(context.Context, Args) (string, error) { return "fetched", nil }

func (s *service) Élan(context.Context) error { return nil }

func (s *service) Internal(int) {}

func TestRegister(t *testing.T) {
	p := New(Options{})
	svc := &service{}
	p.Register("services.OrderSvc", svc, "CheckAndCancel", "URLFetch", "Élan")
	want := []string{"services.OrderSvc.checkAndCancel", "services.OrderSvc.uRLFetch", "services.OrderSvc.élan"}
	if got := p.registry.names(); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	h := p.registry.lookup("services.OrderSvc.checkAndCancel")
	v, err := h.param.Bind([]byte(`{"ID":7}`))
	if err != nil {
		t.Fatal(err)
	}
	if result, err := h.call(t.Context(), nil, v); err != nil || result != nil || !slices.Equal(svc.calls, []string{"check 7"}) {
		t.Errorf("got %v, %v, %v", result, err, svc.calls)
	}
	h = p.registry.lookup("services.OrderSvc.uRLFetch")
	if result, err := h.call(t.Context(), nil, reflect.ValueOf(Args{})); err != nil || result != "fetched" {
		t.Errorf("got %v, %v", result, err)
	}
}

func TestRegisterPanics(t *testing.T) {
	p := New(Options{})
	fits := "CheckAndCancel, URLFetch, Élan"
	contains(t, panics(func() { p.Register("s", nil, "X") }), "outbox: register s: the service is nil")
	contains(t, panics(func() { p.Register("s", (*service)(nil), "CheckAndCancel") }), "outbox: register s: the service is nil (*outbox.service)")
	contains(t, panics(func() { p.Register("s", &service{}) }), "outbox: register s: name the methods", "*outbox.service", fits)
	contains(t, panics(func() { p.Register("s", &service{}, "Nope") }), "*outbox.service has no method Nope", fits)
	contains(t, panics(func() { p.Register("s", service{}, "CheckAndCancel") }), "has no method CheckAndCancel", "none")
	contains(t, panics(func() { p.Register("s", &service{}, "Internal") }), "method Internal of *outbox.service: func(int) does not fit", "a handler is one of")
	contains(t, panics(func() { p.Register("s.", &service{}, "CheckAndCancel") }), "empty part")
	p.Register("s", &service{}, "CheckAndCancel")
	contains(t, panics(func() { p.Register("s", &service{}, "CheckAndCancel") }), "s.checkAndCancel", "registered already")
}

func TestAlias(t *testing.T) {
	p := New(Options{})
	p.Alias("old", "new")
	p.Alias("gone", "neww")
	p.Handle("new", func(context.Context, *gorm.DB) error { return nil })
	if h := p.registry.lookup("old"); h == nil || h.function != "new" {
		t.Errorf("got %+v", h)
	}
	if h := p.registry.lookup("gone"); h != nil {
		t.Errorf("an alias of nothing leads to %+v", h)
	}
	if got := p.registry.names(); !slices.Equal(got, []string{"new", "old"}) {
		t.Errorf("got %q", got)
	}
	err := p.registry.seal()
	if !errors.Is(err, ErrUnknownFunc) {
		t.Fatalf("got %v", err)
	}
	contains(t, err.Error(), "alias gone", "neww", "did you mean new?")
	contains(t, panics(func() { p.Alias("new", "x") }), "outbox: alias new: the function is registered already")
	contains(t, panics(func() { p.Alias("old", "x") }), "the function is an alias of new already")
	contains(t, panics(func() { p.Alias("a b", "x") }), "outbox: alias a b: the name has a ' '")
	contains(t, panics(func() { p.Alias("x", "a b") }), "outbox: alias x: the name has a ' '")
	contains(t, panics(func() { p.Alias("x", "x") }), "outbox: alias x: it is an alias of itself")
	t.Run("of an alias", func(t *testing.T) {
		p := New(Options{})
		p.Alias("first", "second")
		p.Alias("second", "third")
		p.Handle("third", func(context.Context) error { return nil })
		err := p.registry.seal()
		if !errors.Is(err, ErrUnknownFunc) {
			t.Fatalf("got %v", err)
		}
		contains(t, err.Error(), "alias first", "second is an alias itself, of third")
	})
}

func TestDefinePanics(t *testing.T) {
	contains(t, panics(func() { Define[payArgs]("a..b") }), "outbox: define a..b", "empty part")
	contains(t, panics(func() { Define[string]("a") }), "the arguments are string; they must be a struct")
	contains(t, panics(func() { Define[map[string]int]("a") }), "map[string]int")
	for want, opt := range map[string]CreateOption{
		"MaxAttempts: 0 is not between 1 and 10000":   MaxAttempts(0),
		"Priority: 9 is not between 1 and 4":          Priority(9),
		"Queue: is empty":                             Queue(""),
		"Key: is empty":                               Key(""),
		"Timeout: -1s is negative":                    Timeout(-time.Second),
		"StartAfter: -1s is negative":                 StartAfter(-time.Second),
		"StartAt: the zero time":                      StartAt(time.Time{}),
		`StartTime: "noon" is not a time of the form`: StartTime("noon"),
		"option 0 is nil":                             nil,
	} {
		contains(t, panics(func() { Define[payArgs]("a.b", opt) }), "outbox: define a.b: bad option: ", want)
	}
	if text := panics(func() {
		Define[Args]("a")
		Define[payArgs]("a", StartTime("2026-03-29 02:30:00"), StartAfter(time.Hour), Key("one"), Queue("q"), Priority(1), MaxAttempts(3), Timeout(0))
	}); text != "" {
		t.Error(text)
	}
}

func TestSuggest(t *testing.T) {
	p := New(Options{})
	for _, path := range []string{"services.OrderSvc.checkAndCancel", "services.MailSvc.send", "jobs.cleanup"} {
		p.Handle(path, func(context.Context) error { return nil })
	}
	for _, c := range []struct{ name, path, want string }{
		{"a typing error", "services.OrderSvc.checkAndCancl", "did you mean services.OrderSvc.checkAndCancel?"},
		{"another case", "services.ordersvc.CheckAndCancel", "did you mean services.OrderSvc.checkAndCancel?"},
		{"another package", "mails.send", "did you mean services.MailSvc.send?"},
		{"nothing like it", "xyz", "3 functions are registered, none of them like it"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := p.registry.unknown(c.path)
			if !errors.Is(err, ErrUnknownFunc) {
				t.Errorf("got %v", err)
			}
			contains(t, err.Error(), c.want, "Options.ProducerOnly")
		})
	}
}

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"", "abc", 3}, {"abc", "", 3}, {"kitten", "sitting", 3}, {"flaw", "lawn", 2}, {"same", "same", 0}} {
		if got := distance(c.a, c.b); got != c.want {
			t.Errorf("%q to %q: got %d, want %d", c.a, c.b, got, c.want)
		}
	}
}

// Create looks functions up while others do, too.
func TestRegistryConcurrently(t *testing.T) {
	p := New(Options{})
	p.Handle("a", func(context.Context) error { return nil })
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				_ = p.registry.lookup("a")
				_ = p.registry.unknown("b")
				_ = p.registry.names()
				_ = p.registry.seal()
				p.registry.unseal()
			}
		})
	}
	wg.Wait()
}

// paramOf is the parameter of a type; nil stands for none.
func paramOf(t reflect.Type) args.Param {
	if t == nil {
		return args.Param{}
	}
	p, _ := args.ParamOf(t)
	return p
}
