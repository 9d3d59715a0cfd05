package outbox_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
)

type effect struct {
	Task string // no unique key: a second effect must be seen
	What string
}

func effects(t *testing.T, db *gorm.DB, task string) int64 {
	t.Helper()
	var n int64
	if err := db.Model(&effect{}).Where("task = ?", task).Count(&n).Error; err != nil {
		t.Fatal(err)
	}
	return n
}

func TestTransactionalHandler(t *testing.T) {
	errNo := errors.New("no")
	eachDB(t, func(t *testing.T, db *gorm.DB) {
		var kept *gorm.DB
		write := func(ctx context.Context, tx *gorm.DB) error {
			task, _ := outbox.TaskFrom(ctx)
			return tx.Create(&effect{task.ID, "write"}).Error
		}
		handlers := map[string]func(context.Context, *gorm.DB) error{
			"writes": write,
			"fails":  func(ctx context.Context, tx *gorm.DB) error { return errors.Join(write(ctx, tx), errNo) },
			"panics": func(ctx context.Context, tx *gorm.DB) error { panic(write(ctx, tx)) },
			"commits": func(ctx context.Context, tx *gorm.DB) error {
				if err := write(ctx, tx); err != nil {
					return err
				}
				if err := tx.Commit().Error; !errors.Is(err, outbox.ErrTxGuarded) {
					t.Errorf("Commit: %v", err)
				}
				return nil
			},
			"rolls back": func(ctx context.Context, tx *gorm.DB) error {
				if err := write(ctx, tx); err != nil {
					return err
				}
				if err := tx.Rollback().Error; !errors.Is(err, outbox.ErrTxGuarded) {
					t.Errorf("Rollback: %v", err)
				}
				return nil
			},
			"raw commit": func(ctx context.Context, tx *gorm.DB) error {
				return tx.Exec("COMMIT").Error
			},
			"swallows an error": func(ctx context.Context, tx *gorm.DB) error {
				if err := write(ctx, tx); err != nil {
					return err
				}
				_ = tx.Exec("INSERT INTO nowhere VALUES (1)").Error
				return nil
			},
			"nests": func(ctx context.Context, tx *gorm.DB) error {
				if err := tx.Transaction(func(tx *gorm.DB) error { return errors.Join(write(ctx, tx), errNo) }); !errors.Is(err, errNo) {
					return err
				}
				return tx.Transaction(func(tx *gorm.DB) error { return write(ctx, tx) })
			},
			"keeps": func(ctx context.Context, tx *gorm.DB) error { kept = tx; return write(ctx, tx) },
			"creates": func(ctx context.Context, tx *gorm.DB) error {
				_, err := outbox.Create(tx, outboxPath("writes"), nil)
				return err
			},
			"loses its claim": func(ctx context.Context, tx *gorm.DB) error {
				task, _ := outbox.TaskFrom(ctx)
				return errors.Join(write(ctx, tx), tx.Exec("UPDATE outbox_tasks SET version = version + 1 WHERE id = ?", task.ID).Error)
			},
		}
		lost := make(chan error, 100)
		p := install(t, db, quick(finishHook(func(task *outbox.TaskModel, f outbox.Finish) {
			if task.Func == outboxPath("loses its claim") {
				lost <- f.Err
			}
		})), func(p *outbox.Plugin) {
			for path, fn := range handlers {
				p.Handle(outboxPath(path), fn)
			}
		})
		if err := db.AutoMigrate(&effect{}); err != nil {
			t.Fatal(err)
		}
		start(t, p)
		swallowed := outbox.StatusSuccess // an error of one statement undoes nothing else there
		if db.Name() == "postgres" {
			swallowed = outbox.StatusError
		}
		for _, tt := range []struct {
			path    string
			status  outbox.Status
			reason  outbox.Reason
			effects int64
		}{
			{"writes", outbox.StatusSuccess, outbox.ReasonNone, 1},
			{"fails", outbox.StatusError, outbox.ReasonFailed, 0},
			{"panics", outbox.StatusError, outbox.ReasonPanic, 0},
			{"commits", outbox.StatusError, outbox.ReasonTransaction, 0},
			{"rolls back", outbox.StatusError, outbox.ReasonTransaction, 0},
			{"raw commit", outbox.StatusError, outbox.ReasonTransaction, 0},
			{"swallows an error", swallowed, map[bool]outbox.Reason{true: outbox.ReasonTransaction}[swallowed == outbox.StatusError], int64(map[bool]int{false: 1}[swallowed == outbox.StatusError])},
			{"nests", outbox.StatusSuccess, outbox.ReasonNone, 1},
			{"keeps", outbox.StatusSuccess, outbox.ReasonNone, 1},
			{"creates", outbox.StatusSuccess, outbox.ReasonNone, 0},
		} {
			t.Run(tt.path, func(t *testing.T) {
				past := ended(t, db, create(t, db, outboxPath(tt.path), nil).ID)
				if n := effects(t, db, past.ID); past.Status != tt.status || past.Reason != tt.reason || n != tt.effects {
					t.Errorf("%s, %s, %d effects; want %s, %s, %d; error %.300s", past.Status, past.Reason, n, tt.status, tt.reason, tt.effects, text(past.Error))
				}
			})
		}
		t.Run("its db is closed after the return", func(t *testing.T) {
			for what, err := range map[string]error{
				"Exec":  kept.Exec("DELETE FROM effects").Error,
				"Query": kept.Find(&[]effect{}).Error,
				"First": kept.First(&effect{}).Error,
			} {
				if !errors.Is(err, outbox.ErrTxClosed) && !errors.Is(err, context.Canceled) {
					t.Errorf("%s: %v", what, err)
				}
			}
			var n int
			if err := kept.Raw("SELECT 1").Row().Scan(&n); err == nil {
				t.Error("Row worked")
			}
		})
		t.Run("a task that it creates runs after its commit", func(t *testing.T) {
			eventually(t, "no task is left", func() bool { return count(t, db, &outbox.TaskModel{}) == 0 })
		})
		t.Run("a lost claim leaves no effect", func(t *testing.T) {
			task := create(t, db, outboxPath("loses its claim"), nil)
			if err := receive(t, lost); !errors.Is(err, outbox.ErrClaimLost) {
				t.Errorf("the hook was told %v", err)
			}
			if n := effects(t, db, task.ID); n != 0 {
				t.Errorf("%d effects", n)
			}
			waiting, _, err := outbox.Lookup(db, task.ID)
			if err != nil || waiting == nil {
				t.Errorf("the claim was lost, but the task is gone: %v", err)
			}
		})
	})
}

// outboxPath makes a path of a name.
func outboxPath(name string) string {
	b := []byte("tx." + name)
	for i, c := range b {
		if c == ' ' {
			b[i] = '_'
		}
	}
	return string(b)
}

func TestOutcomeOfALostClaimIsRefused(t *testing.T) {
	eachDB(t, func(t *testing.T, db *gorm.DB) {
		started, leave, told := make(chan int, 1), make(chan int), make(chan error, 1)
		p := install(t, db, quick(finishHook(func(_ *outbox.TaskModel, f outbox.Finish) { told <- f.Err })), func(p *outbox.Plugin) {
			p.Handle("slow", func(context.Context) error { started <- 1; <-leave; return nil })
		})
		start(t, p)
		task := create(t, db, "slow", nil, outbox.StartAt(time.Now()))
		receive(t, started)
		if err := db.Exec("UPDATE outbox_tasks SET version = version + 1").Error; err != nil {
			t.Fatal(err)
		}
		close(leave)
		if err := receive(t, told); !errors.Is(err, outbox.ErrClaimLost) {
			t.Errorf("the hook was told %v", err)
		}
		if waiting, past, err := outbox.Lookup(db, task.ID); err != nil || waiting == nil || waiting.State != outbox.StateRunning {
			t.Errorf("%+v, %+v, %v", waiting, past, err)
		}
	})
}

// The handle is closed from the handler's return on, thus also while the run still works on the transaction.
func TestClosedTransaction(t *testing.T) {
	eachDB(t, func(t *testing.T, db *gorm.DB) {
		kept := make(chan gorm.ConnPool, 1)
		p := install(t, db, quick(), func(p *outbox.Plugin) {
			p.Handle("keeps", func(_ context.Context, tx *gorm.DB) error { kept <- tx.Statement.ConnPool; return nil })
		})
		create(t, db, "keeps", nil)
		if n, err := p.RunDue(t.Context()); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		tx, ctx := <-kept, context.Background()
		_, execErr := tx.ExecContext(ctx, "SELECT 1")
		rows, queryErr := tx.QueryContext(ctx, "SELECT 1")
		stmt, prepareErr := tx.PrepareContext(ctx, "SELECT 1")
		for what, err := range map[string]error{"Exec": execErr, "Query": queryErr, "Prepare": prepareErr} {
			if !errors.Is(err, outbox.ErrTxClosed) {
				t.Errorf("%s: %v", what, err)
			}
		}
		if rows != nil || stmt != nil {
			t.Error("got rows or a statement")
		}
		// A row that was asked for on the finished *sql.Tx says sql.ErrTxDone.
		if err := tx.QueryRowContext(ctx, "SELECT 1").Err(); !errors.Is(err, context.Canceled) {
			t.Errorf("QueryRow: %v", err)
		}
	})
}
