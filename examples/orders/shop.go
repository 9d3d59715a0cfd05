package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
)

// Order is the application's own table.
type Order struct {
	ID     uint
	Item   string
	Status Status
	Note   string
}

type Status string

const (
	Unpaid    Status = "unpaid"
	Paid      Status = "paid"
	Cancelled Status = "cancelled"
)

// The paths of the tasks. They are stored, so they outlive a renaming in Go.
const (
	checkAndCancel = "services.OrderSvc.checkAndCancel"
	sendReceipt    = "services.Mailer.sendReceipt"
)

var errOutOfStock = errors.New("out of stock")

// OrderSvc sells things.
type OrderSvc struct {
	db       *gorm.DB
	patience time.Duration // how long an order may stay unpaid
}

// Place stores an order and, in the same transaction, the task that will cancel it unless it has
// been paid. On an error neither is there.
func (s *OrderSvc) Place(item string, inStock bool) (*Order, *outbox.TaskModel, error) {
	order := &Order{Item: item, Status: Unpaid}
	var task *outbox.TaskModel
	err := s.db.Transaction(func(tx *gorm.DB) (err error) {
		if err = tx.Create(order).Error; err != nil {
			return err
		}
		task, err = outbox.Create(tx, checkAndCancel,
			outbox.Args{"orderId": order.ID, "reason": "timeout"},
			outbox.StartAfter(s.patience), outbox.Key(timeoutKey(order.ID)))
		if err != nil {
			return err
		}
		if !inStock {
			return errOutOfStock // whatever fails, the order and its task have never been
		}
		return nil
	})
	return order, task, err
}

// Pay marks an order as paid, takes back the task that would cancel it, and has a receipt sent: all
// or nothing.
func (s *OrderSvc) Pay(id uint) (receipt *outbox.TaskModel, err error) {
	err = s.db.Transaction(func(tx *gorm.DB) error {
		paid := tx.Model(&Order{}).Where("id = ? AND status = ?", id, Unpaid).Update("status", Paid)
		if paid.Error != nil {
			return paid.Error
		}
		if paid.RowsAffected == 0 {
			return fmt.Errorf("order %d is not there to be paid", id)
		}
		// A task that runs already is no error: it checks the order's status itself.
		if _, err := outbox.CancelKey(tx, timeoutKey(id)); err != nil {
			return err
		}
		receipt, err = outbox.Create(tx, sendReceipt, outbox.Args{"orderId": id})
		return err
	})
	return receipt, err
}

// CancelArgs are the arguments of CheckAndCancel.
type CancelArgs struct {
	OrderID uint   `json:"orderId"`
	Reason  string `json:"reason"`
}

// CheckAndCancel is a transactional handler: as it takes tx, the order's change and the end of the
// task are committed together, once.
func (s *OrderSvc) CheckAndCancel(_ context.Context, tx *gorm.DB, args CancelArgs) error {
	return tx.Model(&Order{}).Where("id = ? AND status = ?", args.OrderID, Unpaid).
		Updates(Order{Status: Cancelled, Note: args.Reason}).Error
}

// timeoutKey lets Pay find the task without keeping its id.
func timeoutKey(id uint) string { return fmt.Sprintf("order-timeout-%d", id) }

// Mailer stands for a mail server.
type Mailer struct {
	down atomic.Bool
	sent atomic.Int32
}

// ReceiptArgs are the arguments of SendReceipt.
type ReceiptArgs struct {
	OrderID uint `json:"orderId"`
}

// SendReceipt is an ordinary handler: what it does cannot be rolled back, so it is not tried again
// by itself.
func (m *Mailer) SendReceipt(_ context.Context, args ReceiptArgs) (string, error) {
	if m.down.Load() {
		return "", errors.New("the mail server does not answer")
	}
	m.sent.Add(1)
	return fmt.Sprintf("receipt for order %d sent", args.OrderID), nil
}
