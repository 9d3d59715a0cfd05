package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
)

// shop sells things to people who do not exist.
type shop struct{ db *gorm.DB }

type orderArgs struct {
	OrderID int    `json:"orderId"`
	To      string `json:"to,omitempty"`
}

func (s *shop) register(p *outbox.Plugin) {
	p.Handle("orders.checkAndCancel", func(_ context.Context, _ *gorm.DB, _ orderArgs) error { return nil })
	p.Handle("mail.sendReceipt", func(ctx context.Context, a orderArgs) (string, error) {
		if err := work(ctx, 300*time.Millisecond); err != nil {
			return "", err
		}
		if a.OrderID%9 == 0 {
			return "", errors.New("dial tcp 192.0.2.25:587: i/o timeout")
		}
		return fmt.Sprintf("receipt for order %d sent", a.OrderID), nil
	})
	p.Handle("stock.reserve", func(ctx context.Context, a orderArgs) error {
		if a.OrderID%31 == 0 {
			var shelf []int
			_ = shelf[a.OrderID%7] // a bug, as an operator would find it
		}
		return work(ctx, 50*time.Millisecond)
	})
	p.Handle("report.daily", func(ctx context.Context) error { return work(ctx, 20*time.Second) })
}

// work takes about as long as d.
func work(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d/2 + rand.N(d)):
		return nil
	}
}

// sell places an order about twice a second until ctx is done.
func (s *shop) sell(ctx context.Context) error {
	if _, err := outbox.Create(s.db.WithContext(ctx), "report.daily", nil); err != nil {
		return err
	}
	for id := 1000; ; id++ {
		err := s.db.WithContext(ctx).Transaction(func(tx *gorm.DB) error {
			a := orderArgs{OrderID: id, To: fmt.Sprintf("customer-%d@example.com", id)}
			_, err := outbox.CreateBatch(tx,
				outbox.NewTask{Func: "orders.checkAndCancel", Args: orderArgs{OrderID: id}, Options: []outbox.CreateOption{outbox.StartAfter(30 * time.Minute), outbox.Key(fmt.Sprintf("order-timeout-%d", id))}},
				outbox.NewTask{Func: "mail.sendReceipt", Args: a, Options: []outbox.CreateOption{outbox.Queue("mail")}},
				outbox.NewTask{Func: "stock.reserve", Args: orderArgs{OrderID: id}, Options: []outbox.CreateOption{outbox.MaxAttempts(2)}})
			return err
		})
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		if work(ctx, 500*time.Millisecond) != nil {
			return nil
		}
	}
}
