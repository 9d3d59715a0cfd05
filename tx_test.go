package outbox_test

import (
	"context"
	"database/sql"
	"errors"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
	"github.com/gorm-outbox/outbox/internal/dialect"
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
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
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
			"writes after a raw commit": func(ctx context.Context, tx *gorm.DB) error {
				prepared := tx.Session(&gorm.Session{PrepareStmt: true})
				if err := errors.Join(write(ctx, prepared), tx.Exec("COMMIT").Error); err != nil {
					return err
				}
				_, _ = write(ctx, prepared), write(ctx, tx)
				return nil
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
		p := dbtest.Install(t, db, quick(finishHook(func(task *outbox.TaskModel, f outbox.Outcome) {
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
		dbtest.Start(t, p)
		swallowed := outbox.StatusSuccess // an error of one statement undoes nothing else there
		after := int64(1)                 // what was written before the COMMIT
		if db.Name() == "postgres" {
			swallowed = outbox.StatusError
			after = 3 // nobody asks before each statement
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
			{"writes after a raw commit", outbox.StatusError, outbox.ReasonTransaction, after},
			{"swallows an error", swallowed, map[bool]outbox.Reason{true: outbox.ReasonTransaction}[swallowed == outbox.StatusError], int64(map[bool]int{false: 1}[swallowed == outbox.StatusError])},
			{"nests", outbox.StatusSuccess, outbox.ReasonNone, 1},
			{"keeps", outbox.StatusSuccess, outbox.ReasonNone, 1},
			{"creates", outbox.StatusSuccess, outbox.ReasonNone, 0},
		} {
			t.Run(tt.path, func(t *testing.T) {
				past := dbtest.Ended(t, db, dbtest.Create(t, db, outboxPath(tt.path), nil).ID)
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
			dbtest.Eventually(t, "no task is left", func() bool { return dbtest.Count(t, db, &outbox.TaskModel{}) == 0 })
		})
		t.Run("a lost claim leaves no effect", func(t *testing.T) {
			task := dbtest.Create(t, db, outboxPath("loses its claim"), nil)
			if err := dbtest.Receive(t, lost); !errors.Is(err, outbox.ErrClaimLost) {
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
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		started, leave, told := make(chan int, 1), make(chan int), make(chan error, 1)
		p := dbtest.Install(t, db, quick(finishHook(func(_ *outbox.TaskModel, f outbox.Outcome) { told <- f.Err })), func(p *outbox.Plugin) {
			p.Handle("slow", func(context.Context) error { started <- 1; <-leave; return nil })
		})
		dbtest.Start(t, p)
		task := dbtest.Create(t, db, "slow", nil, outbox.StartAt(time.Now()))
		dbtest.Receive(t, started)
		// Another has it now. Otherwise a heartbeat would find a claim of this process without a
		// run.
		other := outbox.ProcessModel{ID: "other", Functions: outbox.JSON("[]"), StartedAt: time.Now(), BeatAt: time.Now(), Beats: 1}
		if err := db.Create(&other).Error; err != nil {
			t.Fatal(err)
		}
		if err := db.Exec("UPDATE outbox_tasks SET version = version + 1, process_id = ?", other.ID).Error; err != nil {
			t.Fatal(err)
		}
		close(leave)
		if err := dbtest.Receive(t, told); !errors.Is(err, outbox.ErrClaimLost) {
			t.Errorf("the hook was told %v", err)
		}
		if waiting, past, err := outbox.Lookup(db, task.ID); err != nil || waiting == nil || waiting.State != outbox.StateRunning {
			t.Errorf("%+v, %+v, %v", waiting, past, err)
		}
	})
}

// finishing calls somebody when a run's outcome is about to be written.
type finishing struct {
	dialect.Dialect
	call func()
}

func (f finishing) Move(ctx context.Context, c dialect.Conn, from dialect.From, outcomes []dialect.Outcome) ([]string, error) {
	f.call()
	return f.Dialect.Move(ctx, c, from, outcomes)
}

// The handle is closed from the handler's return on, thus also while the run still works on the
// transaction, where what a goroutine of the handler's wrote would be committed.
func TestClosedTransaction(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		const write, read = "INSERT INTO effects (task, what) VALUES ('late', 'late')", "SELECT 1"
		if err := db.AutoMigrate(&effect{}); err != nil {
			t.Fatal(err)
		}
		var tx gorm.Tx
		var session *gorm.DB
		var own *sql.Stmt
		p := dbtest.Install(t, db, quick(), func(p *outbox.Plugin) {
			p.Handle("keeps", func(ctx context.Context, db *gorm.DB) (err error) {
				tx, session = db.Statement.ConnPool.(gorm.Tx), db.WithContext(context.WithoutCancel(ctx)).Session(&gorm.Session{PrepareStmt: true})
				if own, err = tx.PrepareContext(context.WithoutCancel(ctx), write); err != nil {
					return err
				}
				var n int
				return errors.Join(session.Exec(write).Error, session.Raw(read).Row().Scan(&n)) // so that they are prepared
			})
		})
		tried := false
		try := func() {
			tried = true
			ctx := context.Background()
			_, execErr := tx.ExecContext(ctx, write)
			rows, queryErr := tx.QueryContext(ctx, read)
			stmt, prepareErr := tx.PrepareContext(ctx, write)
			_, stmtErr := tx.StmtContext(ctx, own).ExecContext(ctx)
			var n int
			for what, err := range map[string]error{
				"Exec": execErr, "Query": queryErr, "Prepare": prepareErr, "Stmt": stmtErr,
				"QueryRow":                      tx.QueryRowContext(ctx, read).Scan(&n),
				"a prepared session's Exec":     session.Exec(write).Error,
				"a prepared session's Create":   session.Create(&effect{"late", "late"}).Error,
				"a prepared session's Find":     session.Raw(read).Find(&n).Error,
				"a prepared session's Row":      session.Raw(read).Row().Scan(&n),
				"a prepared session's new text": session.Exec(write + " ").Error,
			} {
				if !errors.Is(err, outbox.ErrTxClosed) {
					t.Errorf("%s: %v", what, err)
				}
			}
			if rows != nil || stmt != nil {
				t.Error("got rows or a statement")
			}
			if _, err := own.ExecContext(ctx); err == nil {
				t.Error("a statement that the handler prepared itself: it was executed")
			}
		}
		p.Intercept(func(d dialect.Dialect) dialect.Dialect { return finishing{d, try} })
		dbtest.Create(t, db, "keeps", nil)
		if n, err := p.RunDue(t.Context()); n != 1 || err != nil || !tried {
			t.Fatal(n, err, tried)
		}
		if n := effects(t, db, "late"); n != 1 {
			t.Errorf("%d effects, of which one was in time", n)
		}
		try() // when the transaction is over, too
	})
}
