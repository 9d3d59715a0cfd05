package outbox_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
)

const holdOrder = "services.OrderSvc.hold"

// keyed installs a plugin whose function holdOrder runs until release is closed, beside
// cancelOrder.
func keyed(t *testing.T, db *gorm.DB) (p *outbox.Plugin, running chan string, release chan struct{}) {
	t.Helper()
	running, release = make(chan string, 100), make(chan struct{})
	p = dbtest.Install(t, db, outbox.Options{}, func(p *outbox.Plugin) {
		p.Handle(holdOrder, func(ctx context.Context) error {
			task, _ := outbox.TaskFrom(ctx)
			running <- task.ID
			<-release
			return nil
		})
		p.Handle(cancelOrder, func(context.Context, outbox.Args) error { return nil })
	})
	if err := db.AutoMigrate(&shopOrder{}); err != nil {
		t.Fatal(err)
	}
	return p, running, release
}

// heldBy fails unless an error says that a key is held by a task.
func heldBy(t *testing.T, err error, key, id string) {
	t.Helper()
	var held *outbox.DuplicateKeyError
	if !errors.Is(err, outbox.ErrDuplicateKey) || !errors.As(err, &held) || held.Key != key || held.ID != id {
		t.Fatalf("got %v, want ErrDuplicateKey of key %q held by %s", err, key, id)
	}
	if !strings.Contains(err.Error(), key) || !strings.Contains(err.Error(), id) {
		t.Errorf("%q does not name key and holder", err)
	}
}

func TestKey(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		p, running, release := keyed(t, db)
		t.Run("held while the task waits, and the transaction stays usable", func(t *testing.T) {
			first := dbtest.Create(t, db, cancelOrder, nil, outbox.Key("order 1"), outbox.StartAfter(time.Hour))
			var made *outbox.TaskModel
			err := db.Transaction(func(tx *gorm.DB) error {
				_, err := outbox.Create(tx, cancelOrder, nil, outbox.Key("order 1"))
				heldBy(t, err, "order 1", first.ID)
				_, err = outbox.Create(tx, holdOrder, nil, outbox.Key("order 1"))
				heldBy(t, err, "order 1", first.ID) // across functions
				made = dbtest.Create(t, tx, cancelOrder, nil, outbox.Key("Order 1"), outbox.StartAfter(time.Hour))
				return tx.Create(&shopOrder{Name: "usable"}).Error
			})
			if err != nil || !taskExists(t, db, made.ID) {
				t.Fatalf("the transaction was not usable: %v", err)
			}
		})
		t.Run("free again after a cancellation", func(t *testing.T) {
			first := dbtest.Create(t, db, cancelOrder, nil, outbox.Key("order 2"), outbox.StartAfter(time.Hour))
			if held, err := outbox.CancelKey(db, "order 2"); err != nil || held.ID != first.ID || !held.Cancelled() {
				t.Fatalf("%+v, %v", held, err)
			}
			second := dbtest.Create(t, db, cancelOrder, nil, outbox.Key("order 2"), outbox.StartAfter(time.Hour))
			if _, past, err := outbox.Lookup(db, first.ID); err != nil || past == nil || past.Status != outbox.StatusCancelled ||
				past.Reason != outbox.ReasonCancelled || *past.Key != "order 2" {
				t.Errorf("history has %+v, %v", past, err)
			}
			if err := outbox.Cancel(db, second.ID); err != nil {
				t.Error(err)
			}
		})
		t.Run("within one transaction", func(t *testing.T) {
			if err := db.Transaction(func(tx *gorm.DB) error {
				first := dbtest.Create(t, tx, cancelOrder, nil, outbox.Key("order 3"), outbox.StartAfter(time.Hour))
				_, err := outbox.Create(tx, cancelOrder, nil, outbox.Key("order 3"))
				heldBy(t, err, "order 3", first.ID)
				if _, err := outbox.CancelKey(tx, "order 3"); err != nil {
					return err
				}
				_, err = outbox.Create(tx, cancelOrder, nil, outbox.Key("order 3"), outbox.StartAfter(time.Hour))
				return err
			}); err != nil {
				t.Error(err)
			}
		})
		t.Run("TranslateError makes no difference", func(t *testing.T) {
			tx := db.Session(&gorm.Session{})
			config := *tx.Config
			config.TranslateError = true
			tx.Config = &config
			first := dbtest.Create(t, tx, cancelOrder, nil, outbox.Key("order 4"), outbox.StartAfter(time.Hour))
			_, err := outbox.Create(tx, cancelOrder, nil, outbox.Key("order 4"))
			heldBy(t, err, "order 4", first.ID)
		})
		t.Run("CancelKey of what nobody holds is nil", func(t *testing.T) {
			for _, key := range []string{"nobody", "", "a\x00b", "\xff", strings.Repeat("x", 300)} {
				err := db.Transaction(func(tx *gorm.DB) error {
					if held, err := outbox.CancelKey(tx, key); err != nil || held != (outbox.HeldKey{}) || held.Cancelled() {
						return fmt.Errorf("%+v, %w", held, err)
					}
					return tx.Create(&shopOrder{}).Error
				})
				if err != nil {
					t.Errorf("%q: %v", key, err)
				}
			}
		})
		t.Run("CancelKey minds the version", func(t *testing.T) {
			dbtest.Create(t, db, cancelOrder, nil, outbox.Key("order 5"), outbox.StartAfter(time.Hour))
			if _, err := outbox.CancelKey(db, "order 5", outbox.IfVersion(7)); !errors.Is(err, outbox.ErrConflict) {
				t.Errorf("got %v, want ErrConflict", err)
			}
			if _, err := outbox.CancelKey(db, "order 5", outbox.IfVersion(1)); err != nil {
				t.Error(err)
			}
		})
		t.Run("held while the task runs, free when it has finished", func(t *testing.T) {
			dbtest.Start(t, p)
			task := dbtest.Create(t, db, holdOrder, nil, outbox.Key("order 6"))
			dbtest.Receive(t, running)
			_, err := outbox.Create(db, cancelOrder, nil, outbox.Key("order 6"))
			heldBy(t, err, "order 6", task.ID)
			if held, err := outbox.CancelKey(db, "order 6"); err != nil || held != (outbox.HeldKey{ID: task.ID, State: outbox.StateRunning}) || held.Cancelled() {
				t.Errorf("CancelKey of a running task: %+v, %v", held, err)
			}
			close(release)
			if past := dbtest.Ended(t, db, task.ID); past.Status != outbox.StatusSuccess {
				t.Errorf("ended as %+v", past)
			}
			dbtest.Create(t, db, cancelOrder, nil, outbox.Key("order 6"))
		})
	})
}

func TestKeyOfAnUncommittedHolder(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		keyed(t, db)
		for _, commit := range []bool{true, false} {
			t.Run(fmt.Sprintf("holder commits %v", commit), func(t *testing.T) {
				key := fmt.Sprint("uncommitted ", commit)
				tx := db.Begin()
				holder := dbtest.Create(t, tx, cancelOrder, nil, outbox.Key(key), outbox.StartAfter(time.Hour))
				type result struct {
					task *outbox.TaskModel
					err  error
				}
				began, results := make(chan struct{}), make(chan result, 1)
				go func() {
					close(began)
					task, err := outbox.Create(db, cancelOrder, nil, outbox.Key(key), outbox.StartAfter(time.Hour))
					results <- result{task, err}
				}()
				dbtest.Receive(t, began)
				if db.Name() != "sqlite" {
					waitForBlocked(t, db, tx)
				}
				select {
				case r := <-results:
					t.Fatalf("Create did not wait: %+v", r)
				default:
				}
				if commit {
					if err := tx.Commit().Error; err != nil {
						t.Fatal(err)
					}
					heldBy(t, dbtest.Receive(t, results).err, key, holder.ID)
					return
				}
				if err := tx.Rollback().Error; err != nil {
					t.Fatal(err)
				}
				if r := dbtest.Receive(t, results); r.err != nil || !taskExists(t, db, r.task.ID) {
					t.Errorf("got %+v", r)
				}
			})
		}
	})
}

// waitForBlocked waits until PostgreSQL has somebody wait for a transaction.
func waitForBlocked(t *testing.T, db, tx *gorm.DB) {
	t.Helper()
	own, blocked := "SELECT pg_backend_pid()", "SELECT count(*) FROM pg_stat_activity WHERE ? = ANY (pg_blocking_pids(pid))"
	if db.Name() == "mysql" {
		own, blocked = "SELECT CONNECTION_ID()", `SELECT count(*) FROM information_schema.processlist
WHERE db = DATABASE() AND id NOT IN (?, CONNECTION_ID()) AND command <> 'Sleep' AND info LIKE '%INSERT INTO%'`
	}
	var pid int
	if err := tx.Raw(own).Scan(&pid).Error; err != nil {
		t.Fatal(err)
	}
	dbtest.Eventually(t, "somebody waits for the transaction", func() bool {
		var n int64
		if err := db.Raw(blocked, pid).Scan(&n).Error; err != nil {
			t.Fatal(err)
		}
		return n > 0
	})
}

func TestKeyHasOneWinner(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		keyed(t, db)
		for round := range 5 {
			key := fmt.Sprint("race ", round)
			errs := together(8, func(int) error {
				return db.Transaction(func(tx *gorm.DB) error {
					_, err := outbox.Create(tx, cancelOrder, nil, outbox.Key(key))
					return err
				})
			})
			won := 0
			for _, err := range errs {
				if err == nil {
					won++
				} else if !errors.Is(err, outbox.ErrDuplicateKey) {
					t.Errorf("got %v", err)
				}
			}
			if won != 1 {
				t.Errorf("%d creators won the key", won)
			}
		}
	})
}

// together runs f n times at once and collects what it returns.
func together(n int, f func(i int) error) []error {
	var wg sync.WaitGroup
	errs, barrier := make([]error, n), make(chan struct{})
	for i := range n {
		wg.Go(func() {
			<-barrier
			errs[i] = f(i)
		})
	}
	close(barrier)
	wg.Wait()
	return errs
}

// Who holds the key cannot be seen in the snapshot.
func TestKeyUnderRepeatableRead(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		if db.Name() == "sqlite" {
			t.Skip("no two transactions write at a time")
		}
		keyed(t, db)
		tx := db.Begin(&sql.TxOptions{Isolation: sql.LevelRepeatableRead})
		defer tx.Rollback()
		var n int64
		if err := tx.Model(&outbox.TaskModel{}).Count(&n).Error; err != nil { // takes the snapshot
			t.Fatal(err)
		}
		holder := dbtest.Create(t, db, cancelOrder, nil, outbox.Key("snapshot"))
		_, err := outbox.Create(tx, cancelOrder, nil, outbox.Key("snapshot"))
		if db.Name() == "postgres" {
			var state interface{ SQLState() string }
			if !errors.As(err, &state) || state.SQLState() != "40001" {
				t.Errorf("got %v, want the database's 40001, after which the caller runs its transaction again", err)
			}
			return
		}
		var duplicate *outbox.DuplicateKeyError
		if !errors.As(err, &duplicate) || duplicate.ID != holder.ID {
			t.Errorf("got %v, want the holder %s", err, holder.ID)
		}
		if err := tx.Model(&outbox.TaskModel{}).Count(&n).Error; err != nil || n != 0 {
			t.Errorf("%d tasks, %v: the caller's transaction goes on as it was", n, err)
		}
		dbtest.Create(t, tx, cancelOrder, nil, outbox.Key("another"))
	})
}

func TestCreateBatch(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		p := dbtest.Install(t, db, outbox.Options{MaxArgsBytes: 8 << 20}, func(p *outbox.Plugin) {
			p.Handle(cancelOrder, func(context.Context, outbox.Args) error { return nil })
		})
		_ = p
		if err := db.AutoMigrate(&shopOrder{}); err != nil {
			t.Fatal(err)
		}
		t.Run("ten thousand rows in the order given", func(t *testing.T) {
			tasks := make([]outbox.NewTask, 10_000)
			for i := range tasks {
				tasks[i] = outbox.NewTask{Func: cancelOrder, Args: outbox.Args{"i": i}}
				if i%3 == 0 { // so that they are inserted in another order
					tasks[i].Options = []outbox.CreateOption{outbox.Key(fmt.Sprintf("n%d", (i*7919)%10_007))}
				}
			}
			made, err := outbox.CreateBatch(db.Session(&gorm.Session{CreateBatchSize: 3}), tasks...)
			if err != nil || len(made) != len(tasks) {
				t.Fatalf("%d made, %v", len(made), err)
			}
			var rows []outbox.TaskModel
			if err := db.Find(&rows).Error; err != nil || len(rows) != len(tasks) {
				t.Fatalf("%d rows, %v", len(rows), err)
			}
			slices.SortFunc(rows, func(a, b outbox.TaskModel) int { return strings.Compare(a.ID, b.ID) })
			for i, m := range made {
				want := fmt.Sprintf(`{"i":%d}`, i)
				if m.Args.String() != want || rows[i].ID != m.ID || rows[i].Args.String() != want || !rows[i].RunAt.Equal(m.RunAt) || m.RunAt.IsZero() {
					t.Fatalf("row %d is %+v, returned %+v", i, rows[i], m)
				}
			}
			mustRun(t, db, "DELETE FROM outbox_tasks")
		})
		t.Run("empty", func(t *testing.T) {
			if made, err := outbox.CreateBatch(db); err != nil || len(made) != 0 {
				t.Errorf("%v, %v", made, err)
			}
		})
		t.Run("texts that need quoting, in rows that are alike and in others", func(t *testing.T) {
			texts := []string{`NULL`, `a"b`, `back\slash\\`, `{x,y}`, "tab\tnew\nline", `é😀`, ` `, `\"`, `'$1'`}
			for _, same := range []bool{true, false} {
				tasks := make([]outbox.NewTask, 2*len(texts))
				for i := range tasks {
					tasks[i] = outbox.NewTask{Func: cancelOrder, Args: outbox.Args{"text": texts[i%len(texts)]}, Options: []outbox.CreateOption{outbox.Queue("q")}}
					if i < len(texts) {
						tasks[i].Options = append(tasks[i].Options, outbox.Key(fmt.Sprint(same, texts[i])))
					}
					if !same && i%2 == 0 {
						tasks[i].Options = append(tasks[i].Options, outbox.Priority(1), outbox.Timeout(time.Minute))
					}
				}
				made, err := outbox.CreateBatch(db, tasks...)
				if err != nil {
					t.Fatal(err)
				}
				for i, m := range made {
					task, _, err := outbox.Lookup(db, m.ID)
					if err != nil {
						t.Fatal(err)
					}
					var args outbox.Args
					if err := json.Unmarshal(task.Args, &args); err != nil || args["text"] != texts[i%len(texts)] || task.Args.String() != m.Args.String() {
						t.Errorf("task %d has %s, %v; want %q", i, task.Args, err, texts[i%len(texts)])
					}
					key := ""
					if task.Key != nil {
						key = *task.Key
					}
					if want := fmt.Sprint(same, texts[i%len(texts)]); i < len(texts) && key != want || i >= len(texts) && task.Key != nil {
						t.Errorf("task %d has the key %q", i, key)
					}
					if task.Queue != "q" || task.Priority != m.Priority || task.TimeoutMS != m.TimeoutMS || (task.Priority == 1) != (!same && i%2 == 0) {
						t.Errorf("task %d is %+v, returned as %+v", i, task, m)
					}
				}
			}
			mustRun(t, db, "DELETE FROM outbox_tasks")
		})
		t.Run("arguments that cross a chunk's size", func(t *testing.T) {
			big := strings.Repeat("é", 1_500_000)
			tasks := make([]outbox.NewTask, 4)
			for i := range tasks {
				tasks[i] = outbox.NewTask{Func: cancelOrder, Args: outbox.Args{"i": i, "big": big}}
			}
			made, err := outbox.CreateBatch(db, tasks...)
			if err != nil {
				t.Fatal(err)
			}
			for i, m := range made {
				task, _, err := outbox.Lookup(db, m.ID)
				if err != nil || task.Args.String() != fmt.Sprintf(`{"big":"%s","i":%d}`, big, i) {
					t.Fatalf("task %d: %.60s, %v", i, task.Args, err)
				}
			}
			mustRun(t, db, "DELETE FROM outbox_tasks")
		})

		held := dbtest.Create(t, db, cancelOrder, nil, outbox.Key("m"), outbox.StartAfter(time.Hour))
		many := make([]outbox.NewTask, 1500)
		for i := range many {
			many[i] = outbox.NewTask{Func: cancelOrder}
		}
		key := func(k string) outbox.NewTask {
			return outbox.NewTask{Func: cancelOrder, Options: []outbox.CreateOption{outbox.Key(k)}}
		}
		for name, tt := range map[string]struct {
			tasks []outbox.NewTask
			is    error
			says  []string
		}{
			"unknown function":    {[]outbox.NewTask{key("a"), {Func: "services.OrderSvc.cancell"}}, outbox.ErrUnknownFunc, []string{"task 1", "services.OrderSvc.cancell", cancelOrder}},
			"bad arguments":       {[]outbox.NewTask{{Func: cancelOrder, Args: 7}, {Func: cancelOrder}}, outbox.ErrBadArgs, []string{"task 0", cancelOrder}},
			"bad option":          {append(slices.Clone(many), outbox.NewTask{Func: cancelOrder, Options: []outbox.CreateOption{outbox.Priority(9)}}), outbox.ErrBadOption, []string{"task 1500", "Priority"}},
			"a key twice":         {[]outbox.NewTask{key("a"), key("b"), key("a")}, outbox.ErrDuplicateKey, []string{"task 2", "task 0", `"a"`}},
			"a key that is held":  {[]outbox.NewTask{key("z"), key("m"), key("a")}, outbox.ErrDuplicateKey, []string{held.ID, `"m"`, "task 1, " + cancelOrder}},
			"held, in chunk two":  {append(slices.Clone(many), key("m")), outbox.ErrDuplicateKey, []string{held.ID, `"m"`, "task 1500, " + cancelOrder}},
			"held, before others": {append([]outbox.NewTask{key("m")}, many...), outbox.ErrDuplicateKey, []string{held.ID, `"m"`, "task 0, " + cancelOrder}},
		} {
			check := func(t *testing.T, err error) {
				t.Helper()
				if !errors.Is(err, tt.is) {
					t.Fatalf("got %v, want %v", err, tt.is)
				}
				for _, s := range tt.says {
					if !strings.Contains(err.Error(), s) {
						t.Errorf("%q does not say %q", err, s)
					}
				}
			}
			t.Run(name+" inserts nothing and leaves the transaction usable", func(t *testing.T) {
				var before, after *outbox.TaskModel
				err := db.Transaction(func(tx *gorm.DB) error {
					before = dbtest.Create(t, tx, cancelOrder, nil)
					_, err := outbox.CreateBatch(tx, tt.tasks...)
					check(t, err)
					after = dbtest.Create(t, tx, cancelOrder, nil)
					return tx.Create(&shopOrder{}).Error
				})
				if err != nil || !taskExists(t, db, before.ID) || !taskExists(t, db, after.ID) {
					t.Fatalf("the transaction was not usable: %v", err)
				}
				if err := errors.Join(outbox.Cancel(db, before.ID), outbox.Cancel(db, after.ID)); err != nil {
					t.Fatal(err)
				}
				_, err = outbox.CreateBatch(db, tt.tasks...)
				check(t, err)
				if n := dbtest.Count(t, db, &outbox.TaskModel{}); n != 1 {
					t.Errorf("%d rows are left of nothing", n-1)
				}
			})
		}
	})
}

func TestBatchesInOppositeOrders(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		keyed(t, db)
		const n = 1200
		up := make([]outbox.NewTask, n)
		for i := range up {
			up[i] = outbox.NewTask{Func: cancelOrder, Options: []outbox.CreateOption{outbox.Key(fmt.Sprintf("%05d", i))}}
		}
		down := slices.Clone(up)
		slices.Reverse(down)
		for range 3 {
			errs := together(2, func(i int) error {
				return db.Transaction(func(tx *gorm.DB) error {
					_, err := outbox.CreateBatch(tx, [][]outbox.NewTask{up, down}[i]...)
					return err
				})
			})
			if (errs[0] == nil) == (errs[1] == nil) || !errors.Is(errors.Join(errs...), outbox.ErrDuplicateKey) {
				t.Fatalf("got %v, want one success and one ErrDuplicateKey", errs)
			}
			if rows := dbtest.Count(t, db, &outbox.TaskModel{}); rows != n {
				t.Fatalf("%d rows", rows)
			}
			mustRun(t, db, "DELETE FROM outbox_tasks")
		}
	})
}

// Another task may have got the key since a transaction first read.
func TestCancelKeyOfATaskThatIsNewerThanTheTransaction(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		if db.Name() == "sqlite" {
			t.Skip("while a transaction that will write is open, no other one writes")
		}
		shop(t, db, outbox.Options{})
		first := dbtest.Create(t, db, cancelOrder, nil, outbox.Key("k"), outbox.StartAfter(time.Hour))
		tx := db.Begin()
		defer tx.Rollback()
		if n := dbtest.Count(t, tx, &outbox.TaskModel{}); n != 1 {
			t.Fatalf("%d tasks", n)
		}
		if err := outbox.Cancel(db, first.ID); err != nil {
			t.Fatal(err)
		}
		second := dbtest.Create(t, db, cancelOrder, nil, outbox.Key("k"), outbox.StartAfter(time.Hour))
		if held, err := outbox.CancelKey(tx, "k"); err != nil || held.ID != second.ID || !held.Cancelled() {
			t.Errorf("%+v, %v", held, err)
		}
		if err := tx.Commit().Error; err != nil {
			t.Fatal(err)
		}
		if _, past, err := outbox.Lookup(db, second.ID); err != nil || past == nil || past.Status != outbox.StatusCancelled {
			t.Errorf("%+v, %v", past, err)
		}
	})
}
