package dispatch

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/gorm-outbox/outbox/internal/dialect"
	"github.com/gorm-outbox/outbox/internal/guard"
)

// listen keeps a Waker listening until ctx is done.
func (d *dispatcher) listen(ctx context.Context, w Waker) {
	name := fmt.Sprintf("listen with %T", w)
	for {
		var err error
		if failed := guard.Call(func() {
			err = w.Listen(ctx, d.store.Pool, func() {
				d.outages.recovered(name)
				d.wake()
			})
		}); failed != nil {
			err = failed
		} else if err != nil {
			err = guard.Error(err, nil)
		}
		if ctx.Err() != nil {
			return
		}
		if permanent := new(PermanentError); errors.As(err, &permanent) {
			d.log.Warn("outbox: a Waker cannot listen, so tasks of other processes start at the next scan",
				"waker", fmt.Sprintf("%T", w), "err", err)
			return
		}
		if err != nil {
			d.outages.failed(name, err)
		}
		if dialect.Wait(ctx, 500*time.Millisecond+rand.N(time.Second)) != nil {
			return
		}
	}
}
