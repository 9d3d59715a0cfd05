package outbox_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

// shopOrder is the application's data beside the tasks.
type shopOrder struct {
	ID   uint
	Name string
}

const cancelOrder = "services.OrderSvc.cancel"

// shop installs the plugin with one function, cancelOrder, beside the application's own table. The
// ids of its runs arrive in the channel.
func shop(t *testing.T, db *gorm.DB, opts outbox.Options) (*outbox.Plugin, <-chan string) {
	t.Helper()
	ran := make(chan string, 1000)
	p := dbtest.Install(t, db, opts, func(p *outbox.Plugin) {
		p.Handle(cancelOrder, func(ctx context.Context, _ outbox.Args) error {
			task, _ := outbox.TaskFrom(ctx)
			ran <- task.ID
			return nil
		})
	})
	if err := db.AutoMigrate(&shopOrder{}); err != nil {
		t.Fatal(err)
	}
	return p, ran
}

// taskExists reports whether an id is known to another connection.
func taskExists(t *testing.T, db *gorm.DB, id string) bool {
	t.Helper()
	_, _, err := outbox.Lookup(db, id)
	if err != nil && !errors.Is(err, outbox.ErrNotFound) {
		t.Fatal(err)
	}
	return err == nil
}

func mustRun(t *testing.T, db *gorm.DB, statements ...string) {
	t.Helper()
	for _, s := range statements {
		if err := db.Exec(s).Error; err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
}

func TestTaskExistsIfAndOnlyIfTheTransactionCommits(t *testing.T) {
	errUndo := errors.New("undo")
	// kept and dropped are what the transaction leaves and what it takes back.
	type ids struct{ kept, dropped []string }
	tests := []struct {
		name string
		do   func(t *testing.T, db *gorm.DB) ids
	}{
		{"commit keeps it", func(t *testing.T, db *gorm.DB) (r ids) {
			err := db.Transaction(func(tx *gorm.DB) error {
				r.kept = append(r.kept, dbtest.Create(t, tx, cancelOrder, nil).ID)
				return tx.Create(&shopOrder{Name: "paid"}).Error
			})
			if err != nil {
				t.Fatal(err)
			}
			return r
		}},
		{"no transaction commits it at once", func(t *testing.T, db *gorm.DB) (r ids) {
			r.kept = append(r.kept, dbtest.Create(t, db, cancelOrder, nil).ID)
			return r
		}},
		{"an error of the closure drops it", func(t *testing.T, db *gorm.DB) (r ids) {
			err := db.Transaction(func(tx *gorm.DB) error {
				r.dropped = append(r.dropped, dbtest.Create(t, tx, cancelOrder, nil).ID)
				return errUndo
			})
			if !errors.Is(err, errUndo) {
				t.Fatal(err)
			}
			return r
		}},
		{"a panic of the closure drops it", func(t *testing.T, db *gorm.DB) (r ids) {
			defer func() { _ = recover() }()
			_ = db.Transaction(func(tx *gorm.DB) error {
				r.dropped = append(r.dropped, dbtest.Create(t, tx, cancelOrder, nil).ID)
				panic("boom")
			})
			return r
		}},
		{"a savepoint drops what came after it", func(t *testing.T, db *gorm.DB) (r ids) {
			err := db.Transaction(func(tx *gorm.DB) error {
				r.kept = append(r.kept, dbtest.Create(t, tx, cancelOrder, nil).ID)
				if err := tx.SavePoint("here").Error; err != nil {
					return err
				}
				r.dropped = append(r.dropped, dbtest.Create(t, tx, cancelOrder, nil, outbox.Key("sp")).ID)
				if err := tx.RollbackTo("here").Error; err != nil {
					return err
				}
				r.kept = append(r.kept, dbtest.Create(t, tx, cancelOrder, nil, outbox.Key("sp")).ID)
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			return r
		}},
		{"a nested transaction drops its own", func(t *testing.T, db *gorm.DB) (r ids) {
			err := db.Transaction(func(tx *gorm.DB) error {
				r.kept = append(r.kept, dbtest.Create(t, tx, cancelOrder, nil).ID)
				_ = tx.Transaction(func(inner *gorm.DB) error {
					r.dropped = append(r.dropped, dbtest.Create(t, inner, cancelOrder, nil).ID)
					return errUndo
				})
				return tx.Transaction(func(inner *gorm.DB) error {
					r.kept = append(r.kept, dbtest.Create(t, inner, cancelOrder, nil).ID)
					return nil
				})
			})
			if err != nil {
				t.Fatal(err)
			}
			return r
		}},
		{"the outer transaction drops a nested one's", func(t *testing.T, db *gorm.DB) (r ids) {
			_ = db.Transaction(func(tx *gorm.DB) error {
				if err := tx.Transaction(func(inner *gorm.DB) error {
					r.dropped = append(r.dropped, dbtest.Create(t, inner, cancelOrder, nil).ID)
					return nil
				}); err != nil {
					t.Fatal(err)
				}
				return errUndo
			})
			return r
		}},
		{"manual Begin and Commit keep it", func(t *testing.T, db *gorm.DB) (r ids) {
			tx := db.Begin()
			r.kept = append(r.kept, dbtest.Create(t, tx, cancelOrder, nil).ID)
			if err := tx.Commit().Error; err != nil {
				t.Fatal(err)
			}
			return r
		}},
		{"manual Begin and Rollback drop it", func(t *testing.T, db *gorm.DB) (r ids) {
			tx := db.Begin()
			r.dropped = append(r.dropped, dbtest.Create(t, tx, cancelOrder, nil).ID)
			if err := tx.Rollback().Error; err != nil {
				t.Fatal(err)
			}
			return r
		}},
		{"a batch of several chunks is dropped too", func(t *testing.T, db *gorm.DB) (r ids) {
			tx := db.Begin()
			tasks := make([]outbox.NewTask, 1100)
			for i := range tasks {
				tasks[i] = outbox.NewTask{Func: cancelOrder}
			}
			made, err := outbox.CreateBatch(tx, tasks...)
			if err != nil {
				t.Fatal(err)
			}
			r.dropped = append(r.dropped, made[0].ID, made[1099].ID)
			if err := tx.Rollback().Error; err != nil {
				t.Fatal(err)
			}
			return r
		}},
		{"a closure that is run again leaves nothing of the first time", func(t *testing.T, db *gorm.DB) (r ids) {
			for _, err := range []error{errUndo, nil} {
				got := db.Transaction(func(tx *gorm.DB) error {
					id := dbtest.Create(t, tx, cancelOrder, nil, outbox.Key("again")).ID
					if err != nil {
						r.dropped = append(r.dropped, id)
					} else {
						r.kept = append(r.kept, id)
					}
					return err
				})
				if !errors.Is(got, err) {
					t.Fatal(got)
				}
			}
			return r
		}},
	}
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		p, ran := shop(t, db, outbox.Options{})
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				r := tt.do(t, db)
				for _, id := range r.kept {
					if !taskExists(t, db, id) {
						t.Errorf("committed task %s is not there", id)
					}
				}
				for _, id := range r.dropped {
					if taskExists(t, db, id) {
						t.Errorf("rolled-back task %s is there", id)
					}
				}
				n, err := p.RunDue(t.Context())
				if err != nil || n != len(r.kept) {
					t.Errorf("%d tasks ran, want the %d committed; %v", n, len(r.kept), err)
				}
				for range n {
					id := dbtest.Receive(t, ran)
					for _, dropped := range r.dropped {
						if id == dropped {
							t.Errorf("rolled-back task %s ran", id)
						}
					}
				}
			})
		}
	})
}

func TestManualBeginOnAConnectionIsNotCommitted(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		_, _ = shop(t, db, outbox.Options{})
		waiting := dbtest.Create(t, db, cancelOrder, nil, outbox.StartAfter(time.Hour))
		past := dbtest.Create(t, db, cancelOrder, nil)
		if err := outbox.Cancel(db, past.ID); err != nil {
			t.Fatal(err)
		}
		// everything does all that the library can, inside whatever the connection is in.
		everything := func(conn *gorm.DB) (made []string) {
			made = append(made, dbtest.Create(t, conn, cancelOrder, nil).ID)
			batch, err := outbox.CreateBatch(conn, outbox.NewTask{Func: cancelOrder, Options: []outbox.CreateOption{outbox.Key("k")}})
			if err != nil {
				t.Fatal(err)
			}
			again, err := outbox.Rerun(conn, past.ID)
			if err != nil {
				t.Fatal(err)
			}
			if err := outbox.Reschedule(conn, waiting.ID, time.Now().Add(2*time.Hour)); err != nil {
				t.Fatal(err)
			}
			if err := outbox.Cancel(conn, waiting.ID); err != nil {
				t.Fatal(err)
			}
			return append(made, batch[0].ID, again.ID)
		}
		t.Run("rolled back by hand", func(t *testing.T) {
			var made []string
			if err := db.Connection(func(conn *gorm.DB) error {
				mustRun(t, conn, "BEGIN")
				made = everything(conn)
				for _, id := range made {
					if taskExists(t, db, id) {
						t.Errorf("task %s is visible outside before the commit", id)
					}
				}
				return conn.Exec("ROLLBACK").Error
			}); err != nil {
				t.Fatal(err)
			}
			for _, id := range made {
				if taskExists(t, db, id) {
					t.Errorf("task %s survived the rollback", id)
				}
			}
			if task, _, err := outbox.Lookup(db, waiting.ID); err != nil || task == nil || task.Version != 1 {
				t.Errorf("the waiting task became %+v, %v", task, err)
			}
			if _, h, err := outbox.Lookup(db, past.ID); err != nil || h.RerunID != nil {
				t.Errorf("the history row stayed marked: %+v, %v", h, err)
			}
		})
		t.Run("without a BEGIN each call commits", func(t *testing.T) {
			if err := db.Connection(func(conn *gorm.DB) error {
				for _, id := range everything(conn) {
					if !taskExists(t, db, id) {
						t.Errorf("task %s is not committed", id)
					}
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
		})
	})
}

func TestNothingRunsBeforeTheCommit(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		// The dispatcher asks the clock for each statement, so the calls count its looks at the
		// table.
		var looks atomic.Int64
		p, ran := shop(t, db, outbox.Options{Scan: "@every 10ms", Clock: func() time.Time {
			looks.Add(1)
			return time.Now()
		}})
		dbtest.Start(t, p)
		dbtest.Eventually(t, "the dispatcher has started", func() bool { return dbtest.Count(t, db, &outbox.ProcessModel{}) == 1 })
		for _, commit := range []bool{true, false} {
			tx := db.Begin()
			task := dbtest.Create(t, tx, cancelOrder, nil)
			after := looks.Load() + 40
			dbtest.Eventually(t, "the dispatcher looks", func() bool { return looks.Load() > after })
			select {
			case id := <-ran:
				t.Fatalf("task %s ran before the commit", id)
			default:
			}
			want := task.ID
			if commit {
				if err := tx.Commit().Error; err != nil {
					t.Fatal(err)
				}
			} else {
				if err := tx.Rollback().Error; err != nil {
					t.Fatal(err)
				}
				want = dbtest.Create(t, db, cancelOrder, nil).ID
			}
			if got := dbtest.Receive(t, ran); got != want {
				t.Errorf("commit %v: task %s ran, want %s", commit, got, want)
			}
		}
	})
}

func TestOuterHandleInsideATransaction(t *testing.T) {
	escapes := func(t *testing.T, db *gorm.DB) {
		_, _ = shop(t, db, outbox.Options{})
		var task *outbox.TaskModel
		_ = db.Transaction(func(tx *gorm.DB) error {
			task = dbtest.Create(t, db, cancelOrder, nil)
			return errors.New("undo")
		})
		if !taskExists(t, db, task.ID) {
			t.Error("the documented escape is gone: say so in Create's comment")
		}
	}
	// On SQLite the outer handle waits for the transaction.
	t.Run("escapes the rollback of PostgreSQL", func(t *testing.T) { escapes(t, testdb.Postgres(t)) })
	for name, open := range mysqlServers {
		t.Run("escapes the rollback of "+name, func(t *testing.T) { escapes(t, open(t)) })
	}
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		_, _ = shop(t, db, outbox.Options{})
		pool, err := db.DB()
		if err != nil {
			t.Fatal(err)
		}
		pool.SetMaxOpenConns(1)
		t.Run("waits for the only connection until its context ends", func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			_ = db.Transaction(func(tx *gorm.DB) error {
				if _, err := outbox.Create(db.WithContext(ctx), cancelOrder, nil); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("got %v, want the context's error", err)
				}
				return nil
			})
		})
		t.Run("the transaction's own handle needs no second connection", func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			err := db.WithContext(ctx).Transaction(func(tx *gorm.DB) error { return useEverything(t, tx) })
			if err != nil {
				t.Error(err)
			}
		})
	})
}

func TestRequireTx(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		shop(t, db, outbox.Options{RequireTx: true})
		t.Run("the outer handle is refused inside a transaction", func(t *testing.T) {
			_, err := outbox.Create(db, cancelOrder, nil)
			if !errors.Is(err, outbox.ErrNoTransaction) {
				t.Errorf("Create gave %v", err)
			}
			_, err = outbox.CreateBatch(db, outbox.NewTask{Func: cancelOrder})
			if !errors.Is(err, outbox.ErrNoTransaction) {
				t.Errorf("CreateBatch gave %v", err)
			}
			if n := dbtest.Count(t, db, &outbox.TaskModel{}); n != 0 {
				t.Errorf("%d tasks were inserted", n)
			}
		})
		for name, tx := range map[string]*gorm.DB{"plain": db, "prepared": db.Session(&gorm.Session{PrepareStmt: true})} {
			t.Run("a transaction's handle is accepted, "+name, func(t *testing.T) {
				if err := tx.Transaction(func(tx *gorm.DB) error {
					_, err := outbox.Create(tx, cancelOrder, nil)
					return err
				}); err != nil {
					t.Error(err)
				}
			})
		}
	})
}
