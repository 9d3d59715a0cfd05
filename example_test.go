package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-outbox/outbox"
)

type Order struct {
	ID     uint64
	Status string
}

// check ends an example that cannot go on.
func check(err error) {
	if err != nil {
		log.Panic(err)
	}
}

// openDB opens a database in a temporary folder, which the returned function removes, with the
// plugin and its tables. Register handlers with the plugin before.
func openDB(plugin *outbox.Plugin) (db *gorm.DB, cleanUp func()) {
	dir, err := os.MkdirTemp("", "outbox")
	check(err)
	dsn := "file:" + filepath.ToSlash(filepath.Join(dir, "shop.db")) + "?_journal_mode=WAL&_busy_timeout=5000&_txlock=immediate"
	db, err = gorm.Open(sqlite.Open(dsn), &gorm.Config{Logger: logger.Discard})
	check(err)
	check(db.AutoMigrate(&Order{}))
	check(db.Use(plugin))
	check(plugin.Migrate(context.Background()))
	return db, func() {
		pool, err := db.DB()
		check(err)
		check(pool.Close())
		check(os.RemoveAll(dir))
	}
}

var silent = slog.New(slog.DiscardHandler)

// A task is created in the transaction of the order that it belongs to: it exists if and only if
// that commits.
func Example() {
	plugin := outbox.New(outbox.Options{Logger: silent})
	plugin.Handle("orders.confirm", func(_ context.Context, args struct {
		OrderID uint64 `json:"orderId"`
	}) error {
		fmt.Println("confirming order", args.OrderID)
		return nil
	})
	db, cleanUp := openDB(plugin)
	defer cleanUp()

	place := func(fail error) error {
		return db.Transaction(func(tx *gorm.DB) error {
			order := Order{Status: "new"}
			if err := tx.Create(&order).Error; err != nil {
				return err
			}
			if _, err := outbox.Create(tx, "orders.confirm", outbox.Args{"orderId": order.ID}); err != nil {
				return err
			}
			return fail
		})
	}
	check(place(nil))
	fmt.Println(place(errors.New("the card was refused")))

	// A service calls plugin.Run(ctx); RunDue suits tests, examples and cron jobs.
	n, err := plugin.RunDue(context.Background())
	fmt.Println(n, err)
	// Output:
	// the card was refused
	// confirming order 1
	// 1 <nil>
}

// ConfirmOrder are the arguments of confirm.
type ConfirmOrder struct {
	OrderID uint64 `json:"orderId"`
	Reason  string `json:"reason,omitempty"`
}

var confirm = outbox.Define[ConfirmOrder]("orders.confirm", outbox.MaxAttempts(3))

// With Define the compiler checks the arguments, where a task is created and where it is handled.
func ExampleDefine() {
	plugin := outbox.New(outbox.Options{Logger: silent})
	confirm.Handle(plugin, func(_ context.Context, args ConfirmOrder) error {
		fmt.Printf("%+v\n", args)
		return nil
	})
	db, cleanUp := openDB(plugin)
	defer cleanUp()

	task, err := confirm.Create(db, ConfirmOrder{OrderID: 7})
	check(err)
	fmt.Println(task.Func, task.MaxAttempts)
	_, err = plugin.RunDue(context.Background())
	check(err)
	// Output:
	// orders.confirm 3
	// {OrderID:7 Reason:}
}

// At most one unfinished task has a key. The refusal leaves the transaction usable, on PostgreSQL
// too.
func ExampleKey() {
	plugin := outbox.New(outbox.Options{Logger: silent})
	plugin.Handle("reports.build", func(context.Context) error { return nil })
	db, cleanUp := openDB(plugin)
	defer cleanUp()

	first, err := outbox.Create(db, "reports.build", nil, outbox.Key("report:2026-05"))
	check(err)
	_, err = outbox.Create(db, "reports.build", nil, outbox.Key("report:2026-05"))
	var taken *outbox.DuplicateKeyError
	fmt.Println(errors.Is(err, outbox.ErrDuplicateKey), errors.As(err, &taken) && taken.ID == first.ID)
	// Output:
	// true true
}

// The transaction that pays an order cancels the task that would have cancelled the order.
func ExampleCancel() {
	plugin := outbox.New(outbox.Options{Logger: silent})
	plugin.Handle("orders.checkAndCancel", func(context.Context, outbox.Args) error { return nil })
	db, cleanUp := openDB(plugin)
	defer cleanUp()

	order := Order{Status: "new"}
	check(db.Create(&order).Error)
	task, err := outbox.Create(db, "orders.checkAndCancel", outbox.Args{"orderId": order.ID}, outbox.StartAfter(30*time.Minute))
	check(err)

	err = db.Transaction(func(tx *gorm.DB) error {
		if err := tx.Model(&order).Update("status", "paid").Error; err != nil {
			return err
		}
		// It may have started or ended already. That does not matter: the handler looks at the
		// order's status.
		err := outbox.Cancel(tx, task.ID)
		if errors.Is(err, outbox.ErrRunning) || errors.Is(err, outbox.ErrNotFound) {
			return nil
		}
		return err
	})
	check(err)
	_, past, err := outbox.Lookup(db, task.ID)
	check(err)
	fmt.Println(order.Status, past.Status)
	// Output:
	// paid cancelled
}

// A task is retried only if it was created with MaxAttempts.
func ExampleMaxAttempts() {
	plugin := outbox.New(outbox.Options{Logger: silent, Backoff: func(int) time.Duration { return 0 }})
	plugin.Handle("mail.send", func(ctx context.Context) error {
		task, _ := outbox.TaskFrom(ctx)
		if task.Attempt < 3 {
			return fmt.Errorf("attempt %d: the server is busy", task.Attempt)
		}
		return nil
	})
	db, cleanUp := openDB(plugin)
	defer cleanUp()

	task, err := outbox.Create(db, "mail.send", nil, outbox.MaxAttempts(5))
	check(err)
	for range 3 {
		_, err := plugin.RunDue(context.Background())
		check(err)
	}
	_, past, err := outbox.Lookup(db, task.ID)
	check(err)
	fmt.Println(past.Status, "at attempt", past.Attempt)
	for _, failed := range past.Errors {
		fmt.Println(failed.Reason, "-", failed.Error)
	}
	// Output:
	// success at attempt 3
	// failed - attempt 1: the server is busy
	// failed - attempt 2: the server is busy
}

// A task that failed stays in history, from where it is run again by hand.
func ExampleRerun() {
	up := false
	plugin := outbox.New(outbox.Options{Logger: silent})
	plugin.Handle("mail.send", func(context.Context, outbox.Args) (string, error) {
		if !up {
			return "", errors.New("the mail server is down")
		}
		return "sent", nil
	})
	db, cleanUp := openDB(plugin)
	defer cleanUp()
	ctx := context.Background()

	task, err := outbox.Create(db, "mail.send", outbox.Args{"to": "ann@example.com"})
	check(err)
	_, err = plugin.RunDue(ctx)
	check(err)
	_, past, err := outbox.Lookup(db, task.ID)
	check(err)
	fmt.Println(past.Status, past.Reason, *past.Error)

	up = true
	again, err := outbox.Rerun(db, task.ID)
	check(err)
	_, err = plugin.RunDue(ctx)
	check(err)
	_, past, err = outbox.Lookup(db, again.ID)
	check(err)
	fmt.Println(past.Status, past.Result, *past.RerunOf == task.ID)
	// Output:
	// error failed the mail server is down
	// success "sent" true
}

// A handler that takes a *gorm.DB runs in the transaction that finishes its task: what it writes
// and the end of the task commit together.
func ExamplePlugin_Handle_transactional() {
	plugin := outbox.New(outbox.Options{Logger: silent})
	plugin.Handle("orders.checkAndCancel", func(_ context.Context, tx *gorm.DB, args ConfirmOrder) error {
		return tx.Model(&Order{}).Where("id = ? AND status = ?", args.OrderID, "new").
			Update("status", "cancelled").Error
	})
	db, cleanUp := openDB(plugin)
	defer cleanUp()

	order := Order{Status: "new"}
	check(db.Create(&order).Error)
	_, err := outbox.Create(db, "orders.checkAndCancel", ConfirmOrder{OrderID: order.ID})
	check(err)
	_, err = plugin.RunDue(context.Background())
	check(err)
	check(db.First(&order).Error)
	fmt.Println(order.Status)
	// Output:
	// cancelled
}
