package scenarios_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
)

// What a handler may do to the transaction that it is given. It has written an effect before, and
// writes another after; kept are those that stay.
func TestHandlerEndsItsTransaction(t *testing.T) {
	each(t, func(t *testing.T, d database, dsn string) {
		for _, tt := range []struct {
			name string
			do   func(*gorm.DB) error
			kept int64
			says string
		}{
			{"nothing", func(*gorm.DB) error { return nil }, 2, ""},
			{"Commit, of which it swallows the error", func(tx *gorm.DB) error { _ = tx.Commit(); return nil }, 0, "must not end"},
			{"Rollback, of which it swallows the error", func(tx *gorm.DB) error { _ = tx.Rollback(); return nil }, 0, "must not end"},
			{"Commit of a prepared session", func(tx *gorm.DB) error {
				_ = tx.Session(&gorm.Session{PrepareStmt: true}).Commit()
				return nil
			}, 0, "must not end"},
			{"Begin, which is refused", func(tx *gorm.DB) error {
				if err := tx.Begin().Error; err == nil {
					return errors.New("it began another transaction")
				}
				return nil
			}, 2, ""},
			{"COMMIT", func(tx *gorm.DB) error { return tx.Exec("COMMIT").Error }, 1, "cannot be taken back"},
			{"COMMIT behind another statement", func(tx *gorm.DB) error { return tx.Exec("SELECT 1; COMMIT").Error }, 1, "cannot be taken back"},
			{"COMMIT and BEGIN", func(tx *gorm.DB) error { return tx.Exec("COMMIT; BEGIN").Error }, 1, "cannot be taken back"},
			{"ROLLBACK", func(tx *gorm.DB) error { return tx.Exec("ROLLBACK").Error }, 0, "cannot be taken back"},
			{"ROLLBACK and BEGIN", func(tx *gorm.DB) error { return tx.Exec("ROLLBACK; BEGIN").Error }, 0, "cannot be taken back"},
			{"RELEASE of the library's savepoint", func(tx *gorm.DB) error { return tx.Exec("RELEASE SAVEPOINT outbox_run").Error }, 0, "cannot be taken back"},
			{"DDL", func(tx *gorm.DB) error { return tx.Exec("CREATE TABLE made (id integer)").Error }, 2, ""},
			{"a nested transaction that is rolled back", func(tx *gorm.DB) error {
				_ = tx.Transaction(func(tx *gorm.DB) error { return errors.Join(tx.Create(&effect{"nested", 1}).Error, errors.New("no")) })
				return nil
			}, 2, ""},
			{"a nested transaction of a prepared session", func(tx *gorm.DB) error {
				return tx.Session(&gorm.Session{PrepareStmt: true}).Transaction(func(tx *gorm.DB) error { return tx.Exec("SELECT 1").Error })
			}, 2, ""},
		} {
			t.Run(tt.name, func(t *testing.T) {
				t.Parallel()
				if tt.name == "DDL" && d.driver == "mysql" { // where it commits what came before
					tt.kept, tt.says = 1, "cannot be taken back"
				}
				if d.name == "postgres" && slices.Contains([]string{"COMMIT", "COMMIT behind another statement", "ROLLBACK"}, tt.name) {
					tt.kept++ // what follows commits by itself there, where nobody asks: the error says that something stays
				}
				db := d.open(t, d.dsn(t), nil)
				var runs atomic.Int32
				p := dbtest.Install(t, db, quick(patient), func(p *outbox.Plugin) {
					p.Handle("transactional", func(ctx context.Context, tx *gorm.DB) error {
						runs.Add(1)
						if err := leave(ctx, tx); err != nil {
							return err
						}
						if err := tt.do(tx); err != nil {
							return err
						}
						_ = leave(ctx, tx) // swallowed, whatever it says
						return nil
					})
				})
				dbtest.Start(t, p)
				h := dbtest.Ended(t, db, dbtest.Create(t, db, "transactional", nil, outbox.MaxAttempts(3)).ID)
				n := effects(t, db, h.ID)
				switch {
				case tt.says == "" && (h.Status != outbox.StatusSuccess || runs.Load() != 1 || n != tt.kept):
					t.Errorf("%s %s after %d runs, %d effects: %s", h.Status, h.Reason, runs.Load(), n, text(h))
				case tt.says != "" && (h.Status != outbox.StatusError || h.Reason != outbox.ReasonTransaction || !strings.Contains(text(h), tt.says)):
					t.Errorf("%s %s: %s; want %q", h.Status, h.Reason, text(h), tt.says)
				case n != tt.kept:
					t.Errorf("%d effects, want %d", n, tt.kept)
				case tt.says == "cannot be taken back" && runs.Load() != 1:
					t.Errorf("it ran %d times, though what it had done could stay", runs.Load())
				}
				if n := effects(t, db, "nested"); n != 0 {
					t.Errorf("%d effects of what was rolled back", n)
				}
				if after := dbtest.Ended(t, db, dbtest.Create(t, db, "transactional", nil).ID); after.Attempt != 1 {
					t.Errorf("the next task: %+v", after)
				}
			})
		}
	})
}

// A deadlock that the handler swallows has undone its transaction. Nothing of it stays, and the
// task may be tried again.
func TestSwallowedDeadlock(t *testing.T) {
	on(t, "postgres", func(t *testing.T, d database, dsn string) {
		db := d.open(t, dsn, nil)
		run(t, db, "CREATE TABLE locks (id integer PRIMARY KEY, n integer)")
		run(t, db, "INSERT INTO locks VALUES (1, 0), (2, 0)")
		holds, waits := make(chan struct{}), make(chan error, 1)
		p := dbtest.Install(t, db, quick(patient), func(p *outbox.Plugin) {
			p.Handle("transactional", func(ctx context.Context, tx *gorm.DB) error {
				if err := leave(ctx, tx); err != nil {
					return err
				}
				if task, _ := outbox.TaskFrom(ctx); task.Attempt > 1 {
					return nil
				}
				// The session that has waited for longer than deadlock_timeout is the victim.
				err := tx.Exec("SET LOCAL deadlock_timeout = '50ms'").Error
				err = errors.Join(err, tx.Exec("UPDATE locks SET n = n + 1 WHERE id = 1").Error)
				close(holds)
				for ctx.Err() == nil && !waiting(db, "UPDATE locks SET n = n + 10 WHERE id = 1") {
				}
				if err != nil {
					return err
				}
				if err := tx.Exec("UPDATE locks SET n = n + 1 WHERE id = 2").Error; err == nil || !strings.Contains(err.Error(), "40P01") {
					return fmt.Errorf("no deadlock: %w", err)
				}
				return nil
			})
		})
		go func() {
			<-holds
			waits <- db.Transaction(func(tx *gorm.DB) error {
				return errors.Join(tx.Exec("SET LOCAL deadlock_timeout = '1min'").Error,
					tx.Exec("UPDATE locks SET n = n + 10 WHERE id = 2").Error,
					tx.Exec("UPDATE locks SET n = n + 10 WHERE id = 1").Error)
			})
		}()
		dbtest.Start(t, p)
		h := dbtest.Ended(t, db, dbtest.Create(t, db, "transactional", nil, outbox.MaxAttempts(2)).ID)
		if err := dbtest.Receive(t, waits); err != nil {
			t.Error(err)
		}
		if n := effects(t, db, h.ID); n != 1 || h.Status != outbox.StatusSuccess || h.Attempt != 2 || len(h.Errors) != 1 ||
			h.Errors[0].Reason != outbox.ReasonTransaction || !strings.Contains(h.Errors[0].Error, "nothing of it stays") {
			t.Errorf("%d effects, %+v", n, h)
		}
		var sum int
		if err := db.Raw("SELECT sum(n) FROM locks").Row().Scan(&sum); err != nil || sum != 20 {
			t.Errorf("the locks' sum is %d, %v; want the other transaction's alone", sum, err)
		}
	})
}

// On MySQL a statement that follows a deadlock would be committed by itself, so the handler's are
// refused from there on. The run is not retried: of a COMMIT of the handler's own the library would
// see the same.
func TestSwallowedDeadlockOfMySQL(t *testing.T) {
	servers(t, func(t *testing.T, d database, dsn string) {
		if d.driver != "mysql" {
			t.Skip("there no statement can follow")
		}
		db := d.open(t, dsn, nil)
		run(t, db, "CREATE TABLE locks (id integer PRIMARY KEY, n integer)")
		run(t, db, "INSERT INTO locks VALUES (1, 0), (2, 0)")
		holds, waits := make(chan struct{}), make(chan error, 1)
		p := dbtest.Install(t, db, quick(patient), func(p *outbox.Plugin) {
			p.Handle("transactional", func(ctx context.Context, tx *gorm.DB) error {
				prepared := tx.Session(&gorm.Session{PrepareStmt: true})
				if err := errors.Join(leave(ctx, prepared), tx.Exec("UPDATE locks SET n = n + 1 WHERE id = 1").Error); err != nil {
					return err
				}
				close(holds)
				for ctx.Err() == nil && !waiting(db, "UPDATE locks SET n = n + 10 WHERE id = 1") {
				}
				// The victim is whose transaction has changed fewer rows.
				if err := tx.Exec("UPDATE locks SET n = n + 1 WHERE id = 2").Error; err == nil || !strings.Contains(err.Error(), "1213") {
					return fmt.Errorf("no deadlock: %w", err)
				}
				for _, tx := range []*gorm.DB{prepared, tx, prepared} {
					if err := leave(ctx, tx); err == nil {
						t.Error("a statement after the transaction was undone went through")
					}
				}
				return nil
			})
			p.Handle("fine", fine)
		})
		go func() {
			<-holds
			waits <- db.Transaction(func(tx *gorm.DB) error {
				err := tx.Exec("UPDATE locks SET n = n + 10 WHERE id = 2").Error
				for i := range 100 {
					err = errors.Join(err, tx.Create(&effect{"other", i}).Error)
				}
				return errors.Join(err, tx.Exec("UPDATE locks SET n = n + 10 WHERE id = 1").Error)
			})
		}()
		dbtest.Start(t, p)
		h := dbtest.Ended(t, db, dbtest.Create(t, db, "transactional", nil, outbox.MaxAttempts(2)).ID)
		if err := dbtest.Receive(t, waits); err != nil {
			t.Error(err)
		}
		if n := effects(t, db, h.ID); n != 0 || h.Status != outbox.StatusError || h.Attempt != 1 || h.Reason != outbox.ReasonTransaction ||
			!strings.Contains(text(h), "cannot be taken back") {
			t.Errorf("%d effects, %+v: %s", n, h, text(h))
		}
		var sum int
		if err := db.Raw("SELECT sum(n) FROM locks").Row().Scan(&sum); err != nil || sum != 20 {
			t.Errorf("the locks' sum is %d, %v; want the other transaction's alone", sum, err)
		}
		if h := dbtest.Ended(t, db, dbtest.Create(t, db, "fine", nil).ID); h.Status != outbox.StatusSuccess {
			t.Errorf("the next task: %+v", h)
		}
	})
}

// waiting reports whether a statement waits for a lock.
func waiting(db *gorm.DB, statement string) bool {
	var n int
	query := "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query = ?"
	if db.Name() == "mysql" {
		query = "SELECT count(*) FROM information_schema.processlist WHERE command <> 'Sleep' AND info = ?"
	}
	err := db.Raw(query, statement).Row().Scan(&n)
	return err == nil && n > 0
}

// A full disk undoes the whole transaction on SQLite, and the next statement would be committed by
// itself.
func TestSwallowedFullDisk(t *testing.T) {
	on(t, "sqlite", func(t *testing.T, d database, dsn string) {
		db := d.open(t, dsn, nil)
		run(t, db, "CREATE TABLE filler (x)")
		var full error
		p := dbtest.Install(t, db, quick(patient), func(p *outbox.Plugin) {
			p.Handle("transactional", func(ctx context.Context, tx *gorm.DB) error {
				var pages int
				if err := tx.Raw("PRAGMA page_count").Row().Scan(&pages); err != nil {
					return err
				}
				if err := leave(ctx, tx); err != nil {
					return err
				}
				var got int
				if err := tx.Raw(fmt.Sprint("PRAGMA max_page_count = ", pages+2)).Row().Scan(&got); err != nil {
					return err
				}
				full = tx.Exec("INSERT INTO filler SELECT randomblob(1000000)").Error
				_ = tx.Raw("PRAGMA max_page_count = 1000000").Row().Scan(&got)
				_ = leave(ctx, tx)
				return nil
			})
		})
		dbtest.Start(t, p)
		h := dbtest.Ended(t, db, dbtest.Create(t, db, "transactional", nil).ID)
		if full == nil || !strings.Contains(full.Error(), "full") {
			t.Fatalf("the disk was not full: %v", full)
		}
		// SQLite may have undone the one statement, or the transaction: then nothing may stay.
		n := effects(t, db, h.ID)
		if ok := h.Status == outbox.StatusSuccess && n == 2 || h.Reason == outbox.ReasonTransaction && n == 0; !ok {
			t.Errorf("%d effects, %s %s: %s", n, h.Status, h.Reason, text(h))
		}
		t.Logf("%d effects, %s: %s", n, h.Status, text(h))
	})
}

// An interruption of a writing statement undoes the whole transaction on SQLite; the handler's own
// time limit is one.
func TestSwallowedInterrupt(t *testing.T) {
	on(t, "sqlite", func(t *testing.T, d database, dsn string) {
		var tp tap
		db := d.open(t, dsn, &tp)
		run(t, db, "CREATE TABLE filler (x)")
		var interrupted error
		p := dbtest.Install(t, db, quick(patient), func(p *outbox.Plugin) {
			p.Handle("transactional", func(ctx context.Context, tx *gorm.DB) error {
				if err := leave(ctx, tx); err != nil {
					return err
				}
				short, cancel := context.WithCancel(ctx)
				defer cancel()
				tp.set(func(_ context.Context, st step) error {
					if !st.after && strings.Contains(st.text, "INSERT INTO filler") {
						time.AfterFunc(200*time.Millisecond, cancel) // not before the statement has begun
					}
					return nil
				})
				interrupted = tx.WithContext(short).Exec(
					"INSERT INTO filler WITH RECURSIVE n(x) AS (VALUES (1) UNION ALL SELECT x + 1 FROM n LIMIT 1000000000) SELECT x FROM n").Error
				if err := leave(ctx, tx); err == nil {
					t.Error("a statement after the transaction was undone went through")
				}
				return nil
			})
		})
		dbtest.Start(t, p)
		h := dbtest.Ended(t, db, dbtest.Create(t, db, "transactional", nil).ID)
		if interrupted == nil {
			t.Fatal("nothing was interrupted")
		}
		if n := effects(t, db, h.ID); n != 0 || h.Status != outbox.StatusError || h.Reason != outbox.ReasonTransaction {
			t.Errorf("%d effects, %s %s: %s", n, h.Status, h.Reason, text(h))
		}
	})
}

// A goroutine of the handler goes on writing when the handler has returned: what it wrote in time
// commits with the task, the rest is refused.
func TestTransactionKeptInAGoroutine(t *testing.T) {
	each(t, func(t *testing.T, d database, dsn string) {
		db := d.open(t, dsn, nil)
		written, last := make(chan int64, 100), make(chan error, 100)
		p := dbtest.Install(t, db, quick(patient), func(p *outbox.Plugin) {
			p.Handle("transactional", func(ctx context.Context, tx *gorm.DB) error {
				going := make(chan struct{})
				go func() {
					for n := int64(0); ; n++ {
						if err := leave(context.WithoutCancel(ctx), tx); err != nil {
							written <- n
							last <- err
							return
						}
						if n == 3 {
							close(going)
						}
					}
				}()
				<-going
				return nil
			})
		})
		dbtest.Start(t, p)
		for range 20 {
			h := dbtest.Ended(t, db, dbtest.Create(t, db, "transactional", nil).ID)
			w, err := dbtest.Receive(t, written), dbtest.Receive(t, last)
			// The goroutine may not have heard of the last one that was in time.
			n := effects(t, db, h.ID)
			if h.Status == outbox.StatusSuccess && n != w && n != w+1 || h.Status != outbox.StatusSuccess && n != 0 {
				t.Errorf("%d effects, it knows of %d, %s %s: %s", n, w, h.Status, h.Reason, text(h))
			}
			if err == nil {
				t.Error("it may go on for ever")
			}
		}
	})
}
