package outbox

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// listen keeps a Waker listening until ctx is done.
func (d *dispatcher) listen(ctx context.Context, w Waker) {
	name := fmt.Sprintf("listen with %T", w)
	for {
		var err error
		if failed := shield(func() {
			err = w.Listen(ctx, d.store.pool, func() {
				d.outages.recovered(name)
				d.wake()
			})
		}); failed != nil {
			err = failed
		} else if err != nil {
			err = sanitizeError(err)
		}
		if ctx.Err() != nil {
			return
		}
		if permanent := new(permanentError); errors.As(err, &permanent) {
			d.log.Warn("outbox: a Waker cannot listen, so tasks of other processes start at the next scan",
				"waker", fmt.Sprintf("%T", w), "err", err)
			return
		}
		if err != nil {
			d.outages.failed(name, err)
		}
		if wait(ctx, 500*time.Millisecond+rand.N(time.Second)) != nil {
			return
		}
	}
}
