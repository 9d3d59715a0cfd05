package guard_test

import (
	"errors"
	"fmt"
	"runtime"
	"testing"

	"github.com/gorm-outbox/outbox/internal/guard"
)

// rude is an error, and a value, whose text panics.
type rude struct{}

func (rude) Error() string { panic("no text") }

func TestCall(t *testing.T) {
	var p *guard.Panicked
	if err := guard.Call(func() {}); err != nil {
		t.Errorf("a call that returns failed: %v", err)
	}
	if err := guard.Call(func() { panic("boom") }); !errors.As(err, &p) || p.Text != "boom" || err.Error() != "panic: boom" {
		t.Errorf("a panic is %v", err)
	}
	if err := guard.Call(func() { panic(rude{}) }); !errors.As(err, &p) || p.Text == "" {
		t.Errorf("a panic whose text panics is %v", err)
	}
	if err := guard.Call(runtime.Goexit); err != guard.ErrGoexit {
		t.Errorf("Goexit is %v", err)
	}
}

func TestDriver(t *testing.T) {
	statement := func(f func() error) (err error) {
		defer guard.Driver(&err)
		return f()
	}
	refused := errors.New("refused")
	if err := statement(func() error { return refused }); err != refused {
		t.Errorf("an error becomes %v", err)
	}
	if err := statement(func() error { panic("boom") }); err == nil || err.Error() != "the database driver panicked: boom" {
		t.Errorf("a panic becomes %v", err)
	}
}

func TestError(t *testing.T) {
	plain := fmt.Errorf("wrapped: %w", errors.New("cause"))
	looked := false
	if err := guard.Error(plain, func(error) { looked = true }); err != plain || !looked {
		t.Errorf("an error that can be looked at becomes %v", err)
	}
	if err := guard.Error(rude{}, nil); err == nil || err.Error() == "" {
		t.Errorf("an error whose text panics becomes %v", err)
	}
	if err := guard.Error(plain, func(error) { panic("its Is method") }); err == plain || err.Error() != plain.Error() {
		t.Errorf("an error that panics when looked at becomes %v", err)
	}
	if text := guard.ErrorText(errors.New("")); text == "" {
		t.Error("an error without a text has none")
	}
}
