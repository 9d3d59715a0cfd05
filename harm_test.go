package outbox_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
	"github.com/gorm-outbox/outbox/internal/dialect"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

// What one task, one row or one caller does must harm only itself.

// refuse makes history refuse the row of one task: for its data, or with an error that says nothing
// of the cause.
func refuse(t *testing.T, db *gorm.DB, id string, data bool) {
	t.Helper()
	if db.Dialector.Name() == "sqlite" {
		raise := "SELECT RAISE(ABORT, 'not this one')"
		if !data {
			raise = "SELECT json('not JSON')"
		}
		mustRun(t, db, fmt.Sprintf("CREATE TRIGGER refuse BEFORE INSERT ON outbox_history WHEN NEW.id = '%s' BEGIN %s; END", id, raise))
		return
	}
	if db.Dialector.Name() == "mysql" {
		raise := "SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'not this one'"
		if !data {
			raise = "SIGNAL SQLSTATE 'HY000' SET MESSAGE_TEXT = 'not this one', MYSQL_ERRNO = 1105"
		}
		mustRun(t, db, fmt.Sprintf("CREATE TRIGGER refuse BEFORE INSERT ON outbox_history FOR EACH ROW BEGIN IF NEW.id = '%s' THEN %s; END IF; END", id, raise))
		return
	}
	state := "check_violation"
	if !data {
		state = "internal_error"
	}
	mustRun(t, db,
		"CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not this one' USING ERRCODE = '"+state+"'; END $$",
		fmt.Sprintf("CREATE TRIGGER refuse BEFORE INSERT ON outbox_history FOR EACH ROW WHEN (NEW.id = '%s') EXECUTE FUNCTION refuse()", id))
}

// orphan makes a waiting task one that a process had claimed which is gone.
func orphan(t *testing.T, db *gorm.DB, id string) {
	t.Helper()
	set := map[string]any{"state": "running", "attempt": 1, "version": 2, "process_id": "gone"}
	if r := db.Model(&outbox.TaskModel{}).Where("id = ?", id).Updates(set); r.Error != nil || r.RowsAffected != 1 {
		t.Fatal(r.RowsAffected, r.Error)
	}
}

func TestOrphanThatTheDatabaseRefusesKeepsNoOther(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		p := dbtest.Install(t, db, producer(), nil)
		var ids []string
		for range 5 {
			ids = append(ids, dbtest.Create(t, db, "gone", nil).ID)
			orphan(t, db, ids[len(ids)-1])
		}
		refuse(t, db, ids[2], true)
		if _, err := p.RunDue(t.Context()); err != nil {
			t.Fatal(err)
		}
		for i, id := range ids {
			task, past, err := outbox.Lookup(db, id)
			switch {
			case err != nil:
				t.Error(err)
			case i == 2 && (task == nil || task.State != outbox.StateRunning):
				t.Errorf("the refused one: %+v, %+v", task, past)
			case i != 2 && (past == nil || past.Reason != outbox.ReasonInterrupted):
				t.Errorf("task %d: %+v, %+v", i, task, past)
			}
		}
	})
}

func TestOutcomeThatTheDatabaseRefusesKeepsNoOther(t *testing.T) {
	t.Parallel()
	for name, data := range map[string]bool{"for its data": true, "for no known reason": false} {
		t.Run(name, func(t *testing.T) {
			dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
				finished := make(chan outbox.Outcome, 100)
				gate := make(chan struct{})
				opts := producer()
				opts.Hooks = []outbox.Hooks{finishHook(func(task *outbox.TaskModel, f outbox.Outcome) {
					if task.Func == "bad" {
						finished <- f
					}
				})}
				opts.ShutdownGrace, opts.CancelGrace = 100*time.Millisecond, 100*time.Millisecond
				opts.Heartbeat, opts.HeartbeatLimit = 500*time.Millisecond, 3*time.Second
				p := dbtest.Install(t, db, opts, func(p *outbox.Plugin) {
					wait := func(context.Context) error { <-gate; return nil }
					p.Handle("good", wait)
					p.Handle("bad", wait)
				})
				var good []string
				bad := dbtest.Create(t, db, "bad", nil).ID
				for range 5 {
					good = append(good, dbtest.Create(t, db, "good", nil).ID)
				}
				refuse(t, db, bad, data)
				stop, done := runAsync(t, p)
				dbtest.Eventually(t, "all run", func() bool { return inState(t, db, outbox.StateRunning) == 6 })
				close(gate)
				for _, id := range append(good, dbtest.Create(t, db, "good", nil).ID) {
					if past := dbtest.Ended(t, db, id); past.Status != outbox.StatusSuccess {
						t.Errorf("%+v", past)
					}
				}
				if data {
					receiveGivenUp(t, finished) // at once, for waiting would not help
					// Nor does it keep the dispatcher from giving back what it has claimed without
					// knowing.
					process := processRow(t, db, "").ID
					if err := db.Create(&outbox.TaskModel{ID: "stray", Func: "good", Args: outbox.JSON("{}"), Queue: "default", Priority: 2, RunAt: time.Now(),
						State: outbox.StateRunning, Attempt: 1, MaxAttempts: 1, Version: 2, CreatedAt: time.Now(), ProcessID: &process}).Error; err != nil {
						t.Fatal(err)
					}
					if past := dbtest.Ended(t, db, "stray"); past.Status != outbox.StatusSuccess {
						t.Errorf("%+v", past)
					}
				}
				stop()
				if err := dbtest.Receive(t, done); !data && err == nil {
					t.Error("Run does not tell that an outcome is lost")
				}
				if !data {
					receiveGivenUp(t, finished)
				}
			})
		})
	}
}

// receiveGivenUp waits for what the hooks are told of a run whose outcome could not be recorded.
func receiveGivenUp(t *testing.T, finished <-chan outbox.Outcome) {
	t.Helper()
	f := dbtest.Receive(t, finished)
	if f.Status != "" || f.Reason != outbox.ReasonInterrupted || f.Err == nil || f.Duration == 0 {
		t.Errorf("the hooks were told %+v", f)
	}
}

func TestRowEditedWhileItRunsEndsAsInterrupted(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		started, leave := make(chan struct{}), make(chan struct{})
		p := dbtest.Install(t, db, dbtest.ShortHeartbeats(), func(p *outbox.Plugin) {
			p.Handle("held", func(context.Context) error { close(started); <-leave; return nil })
		})
		dbtest.Start(t, p)
		task := dbtest.Create(t, db, "held", nil)
		dbtest.Receive(t, started)
		if err := db.Model(&outbox.TaskModel{}).Where("id = ?", task.ID).Update("version", gorm.Expr("version + 1")).Error; err != nil {
			t.Fatal(err)
		}
		close(leave)
		if past := dbtest.Ended(t, db, task.ID); past.Status != outbox.StatusError || past.Reason != outbox.ReasonInterrupted || past.Attempt != 1 {
			t.Errorf("%+v", past)
		}
	})
}

func TestHandlerThatLosesItsOwnConnection(t *testing.T) {
	t.Run("postgres", func(t *testing.T) {
		losesItsConnection(t, testdb.Postgres(t), "SELECT pg_terminate_backend(pg_backend_pid())")
	})
	t.Run("mariadb", func(t *testing.T) { losesItsConnection(t, testdb.MariaDB(t), "KILL CONNECTION_ID()") })
	t.Run("mysql", func(t *testing.T) { losesItsConnection(t, testdb.MySQL(t), "KILL CONNECTION_ID()") })
}

func losesItsConnection(t *testing.T, db *gorm.DB, suicide string) {
	p := dbtest.Install(t, db, quick(), func(p *outbox.Plugin) {
		p.Handle("returns", func(_ context.Context, tx *gorm.DB) error {
			tx.Exec(suicide) // MySQL may say that the query was interrupted
			return tx.Exec("SELECT 1").Error
		})
		p.Handle("swallows", func(_ context.Context, tx *gorm.DB) error { tx.Exec(suicide); return nil })
		p.Handle("another", func(context.Context, *gorm.DB) error { return fmt.Errorf("read a file: %w", io.ErrUnexpectedEOF) })
	})
	dbtest.Start(t, p)
	for path, want := range map[string]struct {
		reason           outbox.Reason
		attempt, crashes int
	}{
		"returns":  {outbox.ReasonInterrupted, 3, 3},
		"swallows": {outbox.ReasonInterrupted, 3, 3},
		"another":  {outbox.ReasonFailed, 1, 0},
	} {
		t.Run(path, func(t *testing.T) {
			past := dbtest.Ended(t, db, dbtest.Create(t, db, path, nil).ID)
			if past.Status != outbox.StatusError || past.Reason != want.reason || past.Attempt != want.attempt || past.Crashes != want.crashes {
				t.Errorf("%s, %s, attempt %d, %d crashes, %s", past.Status, past.Reason, past.Attempt, past.Crashes, text(past.Error))
			}
		})
	}
}

// Somebody who copies a row of history back by hand gives it the id that history has already.
func TestRowThatHistoryHasAlreadyHarmsOnlyItself(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		ran := make(chan struct{}, 2)
		p := dbtest.Install(t, db, quick(), func(p *outbox.Plugin) {
			p.Handle("plain", func(context.Context) error { ran <- struct{}{}; return nil })
			p.Handle("plain.tx", func(context.Context, *gorm.DB) error { ran <- struct{}{}; return nil })
		})
		for _, path := range []string{"plain", "plain.tx"} {
			task := dbtest.Create(t, db, path, nil)
			old := outbox.HistoryModel{ID: task.ID, Func: "old", Args: outbox.JSON("{}"), Queue: "default", Status: outbox.StatusCancelled,
				RunAt: task.RunAt, CreatedAt: task.CreatedAt, FinishedAt: task.CreatedAt}
			if err := db.Create(&old).Error; err != nil {
				t.Fatal(err)
			}
		}
		if n, err := p.RunDue(t.Context()); n != 2 || err != nil {
			t.Errorf("ran %d, %v", n, err)
		}
		if n := dbtest.Count(t, db, &outbox.TaskModel{}); n != 0 {
			t.Errorf("%d tasks are left", n)
		}
		if n := dbtest.Count(t, db.Where("func = 'old'"), &outbox.HistoryModel{}); n != 2 {
			t.Errorf("%d of the 2 old rows are as they were", n)
		}
	})
}

// deferredSQLite opens a database whose transactions take the write lock with their first write,
// not when they begin.
func deferredSQLite(t *testing.T) *gorm.DB {
	t.Helper()
	dsn := testdb.SQLiteDSN(t)
	plain := strings.Replace(dsn, "_txlock=immediate", "_txlock=deferred", 1)
	if plain == dsn {
		t.Fatalf("the DSN %s has another form", dsn)
	}
	return openConfig(t, "sqlite", plain, &gorm.Config{})
}

func TestChangesOnSQLiteTakeTheWriteLockFirst(t *testing.T) {
	db := deferredSQLite(t)
	dbtest.Install(t, db, producer(), nil)
	past := dbtest.Create(t, db, "some", nil)
	if err := outbox.Cancel(db, past.ID); err != nil {
		t.Fatal(err)
	}
	// A transaction that has read cannot write any more once another has written.
	if errs := together(8, func(i int) error {
		for n := range 20 {
			key := fmt.Sprint(i, "-", n)
			if err := db.Transaction(func(tx *gorm.DB) error {
				if _, err := outbox.CancelKey(tx, key); err != nil {
					return err
				}
				_, err := outbox.Create(tx, "some", nil, outbox.Key(key))
				return err
			}); err != nil {
				return err
			}
			if err := db.Transaction(func(tx *gorm.DB) error {
				_, err := outbox.Rerun(tx, past.ID)
				if errors.Is(err, outbox.ErrConflict) {
					return nil
				}
				return err
			}); err != nil {
				return err
			}
		}
		return nil
	}); errors.Join(errs...) != nil {
		t.Error(errors.Join(errs...))
	}
}

func TestSnoozeDuringShutdownKeepsItsTime(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		started := make(chan struct{})
		opts := quick()
		opts.ShutdownGrace = time.Millisecond
		p := dbtest.Install(t, db, opts, func(p *outbox.Plugin) {
			p.Handle("snoozes", func(ctx context.Context) error {
				close(started)
				<-ctx.Done()
				return outbox.Snooze(time.Hour)
			}, outbox.Idempotent())
		})
		stop := dbtest.Start(t, p)
		task := dbtest.Create(t, db, "snoozes", nil)
		dbtest.Receive(t, started)
		stop()
		waiting, _, err := outbox.Lookup(db, task.ID)
		if err != nil || waiting == nil || waiting.RunAt.Before(task.RunAt.Add(59*time.Minute)) || waiting.Uncounted != 1 {
			t.Errorf("%+v, %v", waiting, err)
		}
	})
}

// deaf is a Waker that fails.
type deaf struct{}

func (deaf) Created(context.Context, gorm.ConnPool, *sql.DB) error { return errors.New("deaf") }

func (deaf) Listen(ctx context.Context, _ *sql.DB, _ func()) error { <-ctx.Done(); return nil }

func TestWakerThatFails(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		opts := producer()
		opts.Wakers = []outbox.Waker{deaf{}}
		dbtest.Install(t, db, opts, nil)
		t.Run("outside, the task is there already", func(t *testing.T) {
			if task := dbtest.Create(t, db, "some", nil); !taskExists(t, db, task.ID) {
				t.Error("the task is not there")
			}
		})
	})
}

func TestTransactionThatHangsInItsRollbackBlocksNobody(t *testing.T) {
	t.Parallel()
	t.Run("postgres", func(t *testing.T) {
		hangsInItsRollback(t, testdb.Postgres(t), "SELECT pg_sleep(10)",
			"SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'")
	})
	for name, open := range mysqlServers {
		t.Run(name, func(t *testing.T) {
			hangsInItsRollback(t, open(t), "SELECT SLEEP(10)",
				"SELECT count(*) FROM information_schema.processlist WHERE db = DATABASE() AND info = 'SELECT SLEEP(10)'")
		})
	}
}

func hangsInItsRollback(t *testing.T, db *gorm.DB, sleep, sleeping string) {
	var ran <-chan string
	p := dbtest.Install(t, db, quick(), func(p *outbox.Plugin) { ran = notes(p, "note") })
	stop := startAwake(t, db, p, "note", ran)
	ctx, cancel := context.WithCancel(t.Context())
	tx := db.WithContext(ctx).Begin()
	dbtest.Create(t, tx, "note", nil)
	slept := make(chan struct{})
	begun := make(chan struct{})
	go func() {
		defer close(slept)
		close(begun)
		// Not with the transaction's context: its end waits for the statement then.
		tx.WithContext(context.WithoutCancel(ctx)).Exec(sleep)
	}()
	<-begun
	dbtest.Eventually(t, "it sleeps", func() bool {
		var n int64
		err := db.Raw(sleeping).Scan(&n).Error
		return err == nil && n > 0
	})
	cancel()
	for range 10 { // so that the transaction is asked meanwhile whether it is over
		task := dbtest.Create(t, db, "note", nil)
		if id := dbtest.Receive(t, ran); id != task.ID {
			t.Errorf("%s ran", id)
		}
		held(30 * time.Millisecond)
	}
	stop()
	select {
	case <-slept:
		t.Error("it was waited for")
	default:
	}
	<-slept
}

func TestParkLocksOnlyWhatItParks(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		if db.Name() == "sqlite" {
			t.Skip("all writes are one after the other")
		}
		var ran <-chan string
		p := dbtest.Install(t, db, producer(), func(p *outbox.Plugin) { ran = notes(p, "note") })
		able := outbox.ProcessModel{ID: "able", Functions: outbox.JSON(`["note"]`), StartedAt: time.Now(), BeatAt: time.Now()}
		if err := db.Create(&able).Error; err != nil {
			t.Fatal(err)
		}
		task := dbtest.Create(t, db, "note", nil)
		dbtest.Create(t, db, "unknown", nil)
		d, _ := p.Statements()
		tx := db.Begin(&sql.TxOptions{Isolation: d.Isolation()})
		defer tx.Rollback()
		if funcs, err := p.Park(t.Context(), tx.Statement.ConnPool); err != nil || len(funcs) != 1 || funcs[0] != "unknown" {
			t.Fatalf("parked %v, %v", funcs, err)
		}
		if n, err := p.RunDue(t.Context()); n != 1 || err != nil {
			t.Errorf("ran %d, %v", n, err)
		}
		if len(ran) != 1 || <-ran != task.ID {
			t.Error("the task did not run")
		}
	})
}

// A row that somebody has locked, as in a console that is left open, must stall neither the other
// outcomes of its group nor the next tasks.
func TestLockedRowKeepsNoOther(t *testing.T) {
	t.Parallel()
	for name, attempts := range map[string]int{"that succeeded": 1, "that goes back": 2} {
		t.Run(name, func(t *testing.T) {
			dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
				if db.Name() == "sqlite" {
					t.Skip("there are no locks of single rows")
				}
				gate := make(chan struct{})
				p := dbtest.Install(t, db, quick(), func(p *outbox.Plugin) {
					p.Handle("gated", func(ctx context.Context) error {
						<-gate
						if task, _ := outbox.TaskFrom(ctx); task.Attempt < task.MaxAttempts {
							return errors.New("again")
						}
						return nil
					})
					p.Handle("quick", func(context.Context) error { return nil })
				})
				locked := dbtest.Create(t, db, "gated", nil, outbox.MaxAttempts(attempts)).ID
				var others []string
				for range 5 {
					others = append(others, dbtest.Create(t, db, "gated", nil).ID)
				}
				dbtest.Start(t, p)
				dbtest.Eventually(t, "all run", func() bool { return inState(t, db, outbox.StateRunning) == 6 })
				for range 200 { // so that the group's writer has something to claim
					others = append(others, dbtest.Create(t, db, "quick", nil).ID)
				}
				console := db.Begin()
				defer console.Rollback()
				if err := console.Exec("SELECT id FROM outbox_tasks WHERE id = ? FOR UPDATE", locked).Error; err != nil {
					t.Fatal(err)
				}
				close(gate)
				for _, id := range append(others, dbtest.Create(t, db, "quick", nil).ID) {
					if past := dbtest.Ended(t, db, id); past.Status != outbox.StatusSuccess {
						t.Errorf("%+v", past)
					}
				}
				if task, past, err := outbox.Lookup(db, locked); err != nil || past != nil || task.State != outbox.StateRunning {
					t.Errorf("the locked one: %+v, %+v, %v", task, past, err)
				}
				console.Rollback()
				if past := dbtest.Ended(t, db, locked); past.Status != outbox.StatusSuccess || past.Attempt != attempts {
					t.Errorf("the locked one: %+v", past)
				}
			})
		})
	}
}

// single is a database that loses the connection whenever more than one outcome is to be written at
// a time, as when they are more than a packet may hold.
type single struct{ dialect.Dialect }

func (s single) Move(ctx context.Context, c dialect.Conn, from dialect.From, rows []dialect.Outcome) ([]string, error) {
	if len(rows) > 1 {
		return nil, driver.ErrBadConn
	}
	return s.Dialect.Move(ctx, c, from, rows)
}

func TestGroupThatNeverGoesThroughIsTakenApart(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		gate := make(chan struct{})
		opts := quick()
		opts.Heartbeat, opts.HeartbeatLimit = 200*time.Millisecond, 30*time.Second // it tells whether the database answers otherwise
		p := dbtest.Install(t, db, opts, func(p *outbox.Plugin) {
			p.Handle("gated", func(context.Context) error { <-gate; return nil })
		})
		p.Intercept(func(d dialect.Dialect) dialect.Dialect { return single{d} })
		var ids []string
		for range 6 {
			ids = append(ids, dbtest.Create(t, db, "gated", nil).ID)
		}
		dbtest.Start(t, p)
		dbtest.Eventually(t, "all run", func() bool { return inState(t, db, outbox.StateRunning) == 6 })
		close(gate)
		for _, id := range ids {
			if past := dbtest.Ended(t, db, id); past.Status != outbox.StatusSuccess || past.Attempt != 1 {
				t.Errorf("%+v", past)
			}
		}
	})
}
