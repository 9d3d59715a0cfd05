package dialect_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorm-outbox/outbox/internal/dialect"
)

// MySQL's driver sends COMMIT without a context. A reply that is under way when the context ends is
// waited for, and one that never comes is not.
func TestEndOfATransactionReturns(t *testing.T) {
	d, err := dialect.New("mysql", planNames(), nil)
	if err != nil {
		t.Fatal(err)
	}
	refused := errors.New("refused")
	for name, tt := range map[string]struct {
		reply time.Duration // after the context's end; zero means never
		want  error
	}{
		"a reply that is under way": {time.Second, refused},
		"no reply":                  {0, context.Canceled},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				reply, begun := make(chan error, 1), time.Now()
				time.AfterFunc(time.Hour, cancel)
				if tt.reply > 0 {
					time.AfterFunc(time.Hour+tt.reply, func() { reply <- refused })
				}
				err := d.End(ctx, func() error { return <-reply })
				if took := time.Since(begun); !errors.Is(err, tt.want) || took > time.Hour+5*time.Second {
					t.Errorf("%v after %v, want %v", err, took, tt.want)
				}
				reply <- nil // for what was left behind
			})
		})
	}
	t.Run("a driver that panics", func(t *testing.T) {
		defer func() {
			if v := recover(); v != "on purpose" {
				t.Errorf("the caller gets the panic %v", v)
			}
		}()
		_ = d.End(t.Context(), func() error { panic("on purpose") })
	})
}
