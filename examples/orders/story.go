package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
)

// tolerance is for a slow machine: a task starts within milliseconds of its time, at the latest
// with the next scan, a second later.
const tolerance = 3 * time.Second

// story is told line by line; each is printed only after the database has confirmed it.
type story struct {
	out    io.Writer
	begun  time.Time
	db     *gorm.DB
	orders *OrderSvc
	mailer *Mailer
}

func (s *story) tell(ctx context.Context) error {
	if err := s.rollback(); err != nil {
		return fmt.Errorf("rollback: %w", err)
	}
	book, bookTask, err := s.place("book")
	if err != nil {
		return fmt.Errorf("place: %w", err)
	}
	lamp, lampTask, err := s.place("lamp")
	if err != nil {
		return fmt.Errorf("place: %w", err)
	}
	s.mailer.down.Store(true)
	receipt, err := s.pay(book, bookTask)
	if err != nil {
		return fmt.Errorf("pay: %w", err)
	}
	if err := s.failAndRerun(ctx, receipt); err != nil {
		return fmt.Errorf("receipt: %w", err)
	}
	if err := s.timeout(ctx, lamp, lampTask); err != nil {
		return fmt.Errorf("timeout: %w", err)
	}
	// The book's time is over, too, as it was ordered before the lamp.
	if err := s.expect(book, Paid); err != nil {
		return err
	}
	s.say("Order %d (%s) is still paid. That is all.", book.ID, book.Item)
	return nil
}

// rollback: a transaction that is rolled back leaves neither an order nor a task.
func (s *story) rollback() error {
	_, task, err := s.orders.Place("vase", false)
	if !errors.Is(err, errOutOfStock) {
		return fmt.Errorf("the order of a vase gives %v, want %v", err, errOutOfStock)
	}
	for _, model := range []any{&Order{}, &outbox.TaskModel{}, &outbox.HistoryModel{}} {
		var n int64
		if err := s.db.Model(model).Count(&n).Error; err != nil {
			return err
		}
		if n != 0 {
			return fmt.Errorf("%d rows of %T are left, want none", n, model)
		}
	}
	if _, _, err := outbox.Lookup(s.db, task.ID); !errors.Is(err, outbox.ErrNotFound) {
		return fmt.Errorf("looking the task up gives %v, want %v", err, outbox.ErrNotFound)
	}
	s.say("The order of a vase and its task were inserted, then rolled back: %v. No order, no task.", err)
	return nil
}

// place: the order and the task that waits are committed.
func (s *story) place(item string) (*Order, *outbox.TaskModel, error) {
	order, task, err := s.orders.Place(item, true)
	if err != nil {
		return nil, nil, err
	}
	waiting, _, err := outbox.Lookup(s.db, task.ID)
	if err != nil {
		return nil, nil, err
	}
	if waiting == nil || waiting.State != outbox.StatePending {
		return nil, nil, fmt.Errorf("the task of order %d does not wait", order.ID)
	}
	s.say("Order %d (%s) is placed; its task %s(%s) waits for %v.", order.ID, order.Item, waiting.Func, waiting.Args, halfAnHour)
	return order, task, s.expect(order, Unpaid)
}

// pay: the order is paid, its task is cancelled, and a receipt is on its way.
func (s *story) pay(order *Order, timeout *outbox.TaskModel) (receipt *outbox.TaskModel, err error) {
	if receipt, err = s.orders.Pay(order.ID); err != nil {
		return nil, err
	}
	_, past, err := outbox.Lookup(s.db, timeout.ID)
	if err != nil {
		return nil, err
	}
	if past == nil || past.Status != outbox.StatusCancelled {
		return nil, fmt.Errorf("the task of order %d is not cancelled", order.ID)
	}
	s.say("Order %d (%s) is paid, and in the same transaction its task is %s.", order.ID, order.Item, past.Status)
	return receipt, s.expect(order, Paid)
}

// failAndRerun: a task that fails is kept as error, and can be run again when the cause is mended.
func (s *story) failAndRerun(ctx context.Context, receipt *outbox.TaskModel) error {
	failed, err := s.ended(ctx, receipt.ID, outbox.StatusError)
	if err != nil {
		return err
	}
	s.say("Its receipt failed. The history keeps: %s(%s), %s after attempt %d: %q.",
		failed.Func, failed.Args, failed.Status, failed.Attempt, *failed.Error)

	s.mailer.down.Store(false)
	again, err := outbox.Rerun(s.db, failed.ID)
	if err != nil {
		return err
	}
	s.say("The mail server is mended, and the task is run again by hand.")
	done, err := s.ended(ctx, again.ID, outbox.StatusSuccess)
	if err != nil {
		return err
	}
	if n := s.mailer.sent.Load(); n != 1 {
		return fmt.Errorf("%d receipts were sent, want 1", n)
	}
	// The failure stays on record, and names the task that made up for it.
	if failed, err = s.ended(ctx, failed.ID, outbox.StatusError); err != nil {
		return err
	}
	if failed.RerunID == nil || *failed.RerunID != done.ID {
		return fmt.Errorf("the failed task does not name %s as its repetition", done.ID)
	}
	s.say("This time: %s, %s.", done.Status, done.Result)
	return nil
}

// timeout: an order that nobody pays is cancelled when its time is over, and not before.
func (s *story) timeout(ctx context.Context, order *Order, task *outbox.TaskModel) error {
	s.say("Nobody pays order %d (%s) …", order.ID, order.Item)
	done, err := s.ended(ctx, task.ID, outbox.StatusSuccess)
	if err != nil {
		return err
	}
	late := done.StartedAt.Sub(task.RunAt)
	if late < 0 || task.RunAt.Sub(task.CreatedAt) < halfAnHour {
		return fmt.Errorf("task created at %v for %v was started at %v", task.CreatedAt, task.RunAt, done.StartedAt)
	}
	if late > tolerance {
		return fmt.Errorf("its task was started %v after its time", late)
	}
	if err := s.expect(order, Cancelled); err != nil {
		return err
	}
	s.say("… and it is cancelled. Its task was started %v after its time.", late.Round(time.Millisecond))
	return nil
}

// ended waits until a task is in history, and says how it must have ended.
func (s *story) ended(ctx context.Context, id string, want outbox.Status) (*outbox.HistoryModel, error) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		_, past, err := outbox.Lookup(s.db, id)
		switch {
		case err != nil:
			return nil, err
		case past != nil && past.Status == want:
			return past, nil
		case past != nil:
			return nil, fmt.Errorf("%s ended as %s, want %s", past.Func, past.Status, want)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("task %s has not ended: %w", id, ctx.Err())
		}
	}
}

// expect reads an order's status.
func (s *story) expect(order *Order, want Status) error {
	if err := s.db.First(order, order.ID).Error; err != nil {
		return err
	}
	if order.Status != want {
		return fmt.Errorf("order %d is %s, want %s", order.ID, order.Status, want)
	}
	return nil
}

func (s *story) say(format string, args ...any) {
	fmt.Fprintf(s.out, "%5.2fs  %s\n", time.Since(s.begun).Seconds(), fmt.Sprintf(format, args...))
}
