package dispatch

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/gorm-outbox/outbox/internal/dialect"
)

// MaxTries of a transaction, or of a statement outside of one, that the database asks to run again.
const MaxTries = 10

// PauseBeforeTry keeps contenders from colliding again: as many as there are may do so if they
// return together. failed is how many tries did.
func PauseBeforeTry(ctx context.Context, failed int) error {
	return dialect.Wait(ctx, DefaultBackoff(1)>>max(0, 7-failed))
}

// DefaultBackoff doubles from one second to an hour, each a quarter more or less at random.
func DefaultBackoff(attempt int) time.Duration {
	d := time.Hour
	if attempt < 13 {
		d = min(d, time.Second<<max(0, attempt-1))
	}
	return d - d/4 + rand.N(d/2)
}
