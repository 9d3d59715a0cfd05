package testutil_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
	"github.com/gorm-outbox/outbox/testutil"
)

// TestDocumentationOfTheClock is how an application tests what happens in half an hour.
func TestDocumentationOfTheClock(t *testing.T) {
	dbtest.EachInTurn(t, func(t *testing.T, db *gorm.DB) {
		// The application's wiring, with the test's clock.
		clock := testutil.NewClock(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))
		plugin := outbox.New(outbox.Options{Clock: clock.Now})
		var cancelled []string
		plugin.Handle("services.OrderSvc.checkAndCancel", func(ctx context.Context, args outbox.Args) error {
			cancelled = append(cancelled, fmt.Sprint(args["orderId"]))
			return nil
		})
		if err := db.Use(plugin); err != nil {
			t.Fatal(err)
		}
		if err := plugin.Migrate(t.Context()); err != nil {
			t.Fatal(err)
		}

		// The code under test: an order that is to be cancelled in half an hour.
		err := db.Transaction(func(tx *gorm.DB) error {
			_, err := outbox.Create(tx, "services.OrderSvc.checkAndCancel",
				outbox.Args{"orderId": 7, "reason": "timeout"}, outbox.StartAfter(30*time.Minute))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}

		task := testutil.RequireCreated(t, db, "services.OrderSvc.checkAndCancel", outbox.Args{"orderId": 7})
		if want := clock.Now().Add(30 * time.Minute); !task.RunAt.Equal(want) {
			t.Errorf("due %v, want %v", task.RunAt, want)
		}
		testutil.RequireNotCreated(t, db, "services.OrderSvc.checkAndCancel", outbox.Args{"orderId": 8})

		if n := testutil.Drain(t, plugin); n != 0 {
			t.Errorf("%d tasks ran at once, want none", n)
		}
		clock.Advance(30*time.Minute - time.Millisecond)
		if n := testutil.Drain(t, plugin); n != 0 {
			t.Errorf("%d tasks ran early, want none", n)
		}
		clock.Advance(time.Millisecond)
		if n := testutil.Drain(t, plugin); n != 1 {
			t.Errorf("%d tasks ran after half an hour, want one", n)
		}
		if len(cancelled) != 1 || cancelled[0] != "7" {
			t.Errorf("cancelled orders %v, want 7", cancelled)
		}
	})
}

func TestClock(t *testing.T) {
	start := time.Date(2026, 1, 2, 3, 4, 5, 6_789_000, time.UTC)
	cut := time.Date(2026, 1, 2, 3, 4, 5, 6_000_000, time.UTC)

	t.Run("stands still on whole milliseconds", func(t *testing.T) {
		c := testutil.NewClock(start)
		if a, b := c.Now(), c.Now(); a != cut || b != cut {
			t.Errorf("%v, then %v; want %v", a, b, cut)
		}
	})
	t.Run("keeps what is below a millisecond while it advances", func(t *testing.T) {
		c := testutil.NewClock(start)
		c.Advance(600 * time.Microsecond)
		if got := c.Now(); got != cut {
			t.Errorf("%v after 0.6 ms, want %v", got, cut)
		}
		c.Advance(600 * time.Microsecond)
		if got := c.Now(); got != cut.Add(time.Millisecond) {
			t.Errorf("%v, want a millisecond after %v", got, cut)
		}
	})
	t.Run("goes where it is set, also back", func(t *testing.T) {
		c := testutil.NewClock(time.Now())
		c.Set(start)
		c.Advance(-time.Hour)
		if got := c.Now(); got != cut.Add(-time.Hour) {
			t.Errorf("%v, want %v", got, cut.Add(-time.Hour))
		}
	})
	t.Run("is safe for concurrent use", func(t *testing.T) {
		c := testutil.NewClock(start)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				c.Advance(time.Second)
				c.Now()
			})
		}
		wg.Wait()
		if got := c.Now(); got != cut.Add(8*time.Second) {
			t.Errorf("%v, want %v", got, cut.Add(8*time.Second))
		}
	})
}

// A start time given in the clock's own terms is met exactly, whatever the clock was started with.
func TestClockMeetsStartTimes(t *testing.T) {
	dbtest.EachInTurn(t, func(t *testing.T, db *gorm.DB) {
		clock := testutil.NewClock(tokyoNoon(t).Add(987_654_321 * time.Nanosecond))
		p := install(t, db, clock, map[string]any{"ok": ok})
		dbtest.Create(t, db, "ok", nil, outbox.StartAt(clock.Now().Add(time.Hour)))
		dbtest.Create(t, db, "ok", nil, outbox.StartAfter(time.Hour))
		clock.Advance(time.Hour - time.Millisecond)
		if n := testutil.Drain(t, p); n != 0 {
			t.Errorf("%d ran early", n)
		}
		clock.Advance(time.Millisecond)
		if n := testutil.Drain(t, p); n != 2 {
			t.Errorf("%d ran on time, want 2", n)
		}
	})
}

func tokyoNoon(t *testing.T) time.Time {
	t.Helper()
	tokyo, err := time.LoadLocation("Asia/Tokyo")
	if err != nil {
		t.Fatal(err)
	}
	return time.Date(2026, 3, 1, 12, 0, 0, 0, tokyo)
}
