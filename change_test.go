package outbox_test

import (
	"context"
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
)

func TestChangeByState(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		p, running, release := keyed(t, db)
		later := outbox.StartAfter(time.Hour)
		// Each function is applied to a task of each state, in a transaction that must stay usable.
		type verbs struct{ cancel, reschedule, rerun error }
		refused := func(t *testing.T, id string, want verbs, says string) {
			t.Helper()
			err := db.Transaction(func(tx *gorm.DB) error {
				for _, v := range []struct {
					name string
					err  error
					want error
				}{
					{"cancel", outbox.Cancel(tx, id), want.cancel},
					{"reschedule", outbox.Reschedule(tx, id, time.Now()), want.reschedule},
					{"rerun", func() error { _, err := outbox.Rerun(tx, id); return err }(), want.rerun},
				} {
					if v.want == nil {
						t.Fatal("a test that cannot fail")
					}
					if !errors.Is(v.err, v.want) || !strings.Contains(v.err.Error(), says) {
						t.Errorf("%s: got %v, want %v and %q", v.name, v.err, v.want, says)
					}
				}
				return tx.Create(&shopOrder{}).Error
			})
			if err != nil {
				t.Errorf("the transaction was not usable: %v", err)
			}
		}
		t.Run("pending", func(t *testing.T) {
			task := dbtest.Create(t, db, cancelOrder, nil, later)
			if _, err := outbox.Rerun(db, task.ID); !errors.Is(err, outbox.ErrConflict) || !strings.Contains(err.Error(), "pending") {
				t.Errorf("rerun: got %v", err)
			}
			at := time.Now().Add(3 * time.Hour).Truncate(time.Microsecond)
			if err := outbox.Reschedule(db, task.ID, at); err != nil {
				t.Fatal(err)
			}
			if got, _, err := outbox.Lookup(db, task.ID); err != nil || !got.RunAt.Equal(at) || got.Version != 2 {
				t.Errorf("rescheduled to %v, got %+v, %v", at, got, err)
			}
			if err := outbox.Cancel(db, task.ID); err != nil {
				t.Fatal(err)
			}
			got, past, err := outbox.Lookup(db, task.ID)
			if err != nil || got != nil || past.Status != outbox.StatusCancelled || past.Reason != outbox.ReasonCancelled ||
				past.StartedAt != nil || past.FinishedAt.IsZero() || past.Attempt != 0 || !past.RunAt.Equal(at) {
				t.Errorf("cancelled, but: %+v, %+v, %v", got, past, err)
			}
		})
		t.Run("parked", func(t *testing.T) {
			task := dbtest.Create(t, db, cancelOrder, nil)
			park := "UPDATE outbox_tasks SET state = 'parked', version = version + 1 WHERE id = '" + task.ID + "'"
			mustRun(t, db, park)
			if err := outbox.Reschedule(db, task.ID, time.Now().Add(time.Hour)); err != nil {
				t.Fatal(err)
			}
			if got, _, err := outbox.Lookup(db, task.ID); err != nil || got.State != outbox.StatePending || got.Version != 3 {
				t.Errorf("a rescheduled task is %+v, %v", got, err)
			}
			mustRun(t, db, park)
			if err := outbox.Cancel(db, task.ID, outbox.IfVersion(4)); err != nil {
				t.Error(err)
			}
		})
		t.Run("IfVersion", func(t *testing.T) {
			task := dbtest.Create(t, db, cancelOrder, nil, later)
			err := db.Transaction(func(tx *gorm.DB) error {
				for _, err := range []error{
					outbox.Cancel(tx, task.ID, outbox.IfVersion(2)),
					outbox.Reschedule(tx, task.ID, time.Now(), outbox.IfVersion(0)),
					outbox.Reschedule(tx, task.ID, time.Now().Add(time.Hour), outbox.IfVersion(-1)),
				} {
					if !errors.Is(err, outbox.ErrConflict) || !strings.Contains(err.Error(), "version 1") {
						t.Errorf("got %v, want ErrConflict that names the version", err)
					}
				}
				return outbox.Cancel(tx, task.ID, outbox.IfVersion(1))
			})
			if err != nil {
				t.Error(err)
			}
		})
		t.Run("gone or never there", func(t *testing.T) {
			for _, id := range []string{"01890000-0000-7000-8000-000000000000", "", "x' OR '1'='1", "a\x00b", "\xff", strings.Repeat("é", 500)} {
				refused(t, id, verbs{outbox.ErrNotFound, outbox.ErrNotFound, outbox.ErrNotFound}, "")
				err := db.Transaction(func(tx *gorm.DB) error {
					if _, _, err := outbox.Lookup(tx, id); !errors.Is(err, outbox.ErrNotFound) {
						t.Errorf("look up %q: %v", id, err)
					}
					return tx.Create(&shopOrder{}).Error
				})
				if err != nil {
					t.Errorf("%q: the transaction was not usable: %v", id, err)
				}
			}
		})
		t.Run("running", func(t *testing.T) {
			dbtest.Start(t, p)
			task := dbtest.Create(t, db, holdOrder, nil)
			dbtest.Receive(t, running)
			refused(t, task.ID, verbs{outbox.ErrRunning, outbox.ErrRunning, outbox.ErrConflict}, "running")
			close(release)
			past := dbtest.Ended(t, db, task.ID)
			t.Run("in history", func(t *testing.T) {
				if past.Status != outbox.StatusSuccess {
					t.Fatalf("ended as %+v", past)
				}
				for _, err := range []error{outbox.Cancel(db, task.ID), outbox.Reschedule(db, task.ID, time.Now())} {
					if !errors.Is(err, outbox.ErrNotFound) || !strings.Contains(err.Error(), "success") {
						t.Errorf("got %v, want ErrNotFound that says how it ended", err)
					}
				}
			})
		})
	})
}

func TestCancelInARolledBackTransaction(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		p, ran := shop(t, db, outbox.Options{})
		task := dbtest.Create(t, db, cancelOrder, outbox.Args{"a": 1})
		_ = db.Transaction(func(tx *gorm.DB) error {
			if err := outbox.Cancel(tx, task.ID); err != nil {
				t.Error(err)
			}
			return errors.New("undo")
		})
		if n, err := p.RunDue(t.Context()); n != 1 || err != nil {
			t.Fatalf("%d ran, %v", n, err)
		}
		dbtest.Receive(t, ran)
	})
}

func TestCancelAgainstTheClaim(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		p, ran := shop(t, db, outbox.Options{Scan: "@every 10ms"})
		dbtest.Start(t, p)
		cancelled, refused := map[string]bool{}, 0
		for range 60 {
			task := dbtest.Create(t, db, cancelOrder, nil)
			switch err := outbox.Cancel(db, task.ID); {
			case err == nil:
				cancelled[task.ID] = true
			case errors.Is(err, outbox.ErrRunning), errors.Is(err, outbox.ErrNotFound):
				refused++
				if past := dbtest.Ended(t, db, task.ID); past.Status != outbox.StatusSuccess {
					t.Errorf("a task that could not be cancelled ended as %s", past.Status)
				}
			default:
				t.Error(err)
			}
		}
		dbtest.Eventually(t, "all is done", func() bool { return dbtest.Count(t, db, &outbox.TaskModel{}) == 0 })
		if n := dbtest.Count(t, db, &outbox.HistoryModel{}); n != 60 {
			t.Errorf("%d rows of history", n)
		}
		for range refused {
			if id := dbtest.Receive(t, ran); cancelled[id] {
				t.Errorf("task %s was cancelled and ran", id)
			}
		}
		select {
		case id := <-ran:
			t.Errorf("task %s ran too", id)
		default:
		}
	})
}

func TestRescheduleToNowWakes(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		p, ran := shop(t, db, outbox.Options{Scan: "@every 1h"}) // only a wake-up can be in time
		startAwake(t, db, p, cancelOrder, ran)
		for name, at := range map[string]time.Time{
			"now":      time.Now(),
			"the past": time.Now().Add(-time.Hour),
			"soon":     time.Now().Add(100 * time.Millisecond),
		} {
			t.Run(name, func(t *testing.T) {
				task := dbtest.Create(t, db, cancelOrder, nil, outbox.StartAfter(time.Hour))
				if err := db.Transaction(func(tx *gorm.DB) error { return outbox.Reschedule(tx, task.ID, at) }); err != nil {
					t.Fatal(err)
				}
				if got := dbtest.Receive(t, ran); got != task.ID {
					t.Errorf("task %s ran, want %s", got, task.ID)
				}
			})
		}
	})
}

func TestRescheduleRefusesTimesThatAreNone(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		shop(t, db, outbox.Options{})
		task := dbtest.Create(t, db, cancelOrder, nil, outbox.StartAfter(time.Hour))
		for _, at := range badTimes {
			if err := outbox.Reschedule(db, task.ID, at); !errors.Is(err, outbox.ErrBadOption) {
				t.Errorf("%v: got %v", at, err)
			}
		}
		if got, _, err := outbox.Lookup(db, task.ID); err != nil || got.Version != 1 {
			t.Errorf("%+v, %v", got, err)
		}
	})
}

func TestRerun(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		p := dbtest.Install(t, db, outbox.Options{}, func(p *outbox.Plugin) {
			p.Handle(cancelOrder, func(context.Context, outbox.Args) error { return nil })
			p.Handle("strict", func(context.Context, struct{ N int }) error { return errors.New("no") })
		})
		if err := db.AutoMigrate(&shopOrder{}); err != nil {
			t.Fatal(err)
		}
		finished := func(t *testing.T, path string, args any, opts ...outbox.CreateOption) *outbox.HistoryModel {
			t.Helper()
			task := dbtest.Create(t, db, path, args, opts...)
			if n, err := p.RunDue(t.Context()); n != 1 || err != nil {
				t.Fatalf("%d ran, %v", n, err)
			}
			return dbtest.Ended(t, db, task.ID)
		}
		unmarked := func(t *testing.T, id string) {
			t.Helper()
			if _, past, err := outbox.Lookup(db, id); err != nil || past.RerunID != nil {
				t.Errorf("history is marked: %+v, %v", past, err)
			}
		}
		t.Run("repeats everything and links both ways", func(t *testing.T) {
			old := finished(t, cancelOrder, outbox.Args{"n": 9007199254740993}, outbox.Key("k"), outbox.Queue("q"),
				outbox.Priority(4), outbox.MaxAttempts(3), outbox.Timeout(1500*time.Millisecond))
			again, err := outbox.Rerun(db, old.ID)
			if err != nil {
				t.Fatal(err)
			}
			got, _, err := outbox.Lookup(db, again.ID)
			if err != nil || got.ID == old.ID || got.Func != old.Func || got.Args.String() != `{"n":9007199254740993}` || *got.Key != "k" ||
				got.Queue != "q" || got.Priority != 4 || got.MaxAttempts != 3 || got.TimeoutMS != 1500 || got.Attempt != 0 ||
				got.RerunOf == nil || *got.RerunOf != old.ID || *again.RerunOf != old.ID {
				t.Errorf("re-run as %+v, %v", got, err)
			}
			_, past, err := outbox.Lookup(db, old.ID)
			if err != nil || past.RerunID == nil || *past.RerunID != again.ID || past.Status != old.Status || past.Version != old.Version {
				t.Errorf("history became %+v, %v", past, err)
			}
			if n, err := p.RunDue(t.Context()); n != 1 || err != nil {
				t.Fatalf("%d ran, %v", n, err)
			}
			if h := dbtest.Ended(t, db, again.ID); h.Status != outbox.StatusSuccess || *h.RerunOf != old.ID {
				t.Errorf("ended as %+v", h)
			}
		})
		t.Run("is the same task in every column", func(t *testing.T) {
			old := finished(t, cancelOrder, outbox.Args{"n": 1}, outbox.Key("same"), outbox.Queue("q"), outbox.Priority(4),
				outbox.MaxAttempts(3), outbox.Timeout(time.Second))
			mustRun(t, db, `UPDATE outbox_history SET meta = '{"tenant":"t-1"}' WHERE id = '`+old.ID+"'")
			again, err := outbox.Rerun(db, old.ID)
			if err != nil {
				t.Fatal(err)
			}
			got, _, err := outbox.Lookup(db, again.ID)
			if err != nil {
				t.Fatal(err)
			}
			if got.Meta["tenant"] != "t-1" || len(got.Meta) != 1 {
				t.Errorf("Meta is %v", got.Meta)
			}
			if !reflect.DeepEqual(again.Meta, got.Meta) {
				t.Errorf("Meta was returned as %v", again.Meta)
			}
			// What a task has for itself: who it is, when, and how far it has come.
			own := []string{"ID", "RunAt", "State", "Attempt", "Uncounted", "Crashes", "Repeatable", "Version", "ProcessID", "RerunOf",
				"Errors", "CreatedAt", "StartedAt"}
			_, past, err := outbox.Lookup(db, old.ID)
			if err != nil {
				t.Fatal(err)
			}
			task, history := reflect.ValueOf(*got), reflect.ValueOf(*past)
			for i := range task.NumField() {
				name := task.Type().Field(i).Name
				if slices.Contains(own, name) {
					continue
				}
				a, b := history.FieldByName(name).Interface(), task.Field(i).Interface()
				if !reflect.DeepEqual(a, b) {
					t.Errorf("%s is %v, was %v", name, b, a)
				}
			}
			mustRun(t, db, "DELETE FROM outbox_tasks")
		})
		t.Run("a second time is ErrConflict", func(t *testing.T) {
			old := finished(t, cancelOrder, nil)
			errs := together(6, func(int) error { _, err := outbox.Rerun(db, old.ID); return err })
			won := 0
			for _, err := range errs {
				if err == nil {
					won++
				} else if !errors.Is(err, outbox.ErrConflict) {
					t.Errorf("got %v", err)
				}
			}
			if n := dbtest.Count(t, db, &outbox.TaskModel{}); won != 1 || n != 1 {
				t.Errorf("%d re-runs won, %d tasks", won, n)
			}
			_, past, _ := outbox.Lookup(db, old.ID)
			if _, err := outbox.Rerun(db, old.ID); err == nil || !strings.Contains(err.Error(), *past.RerunID) {
				t.Errorf("%v does not name the task that repeats it", err)
			}
			mustRun(t, db, "DELETE FROM outbox_tasks")
		})
		t.Run("options and other arguments", func(t *testing.T) {
			old := finished(t, "strict", json.RawMessage(`{"N":1}`))
			again, err := outbox.Rerun(db, old.ID, outbox.WithArgs(map[string]int{"N": 2}), outbox.StartAfter(time.Hour),
				outbox.Queue("slow"), outbox.Priority(1), outbox.Key("other"))
			if err != nil {
				t.Fatal(err)
			}
			if again.Args.String() != `{"N":2}` || again.Queue != "slow" || again.Priority != 1 || *again.Key != "other" ||
				again.RunAt.Before(time.Now().Add(50*time.Minute)) {
				t.Errorf("re-run as %+v", again)
			}
		})
		t.Run("what is refused leaves history unmarked and the transaction usable", func(t *testing.T) {
			old := finished(t, "strict", json.RawMessage(`{"N":1}`), outbox.Key("taken"))
			holder := dbtest.Create(t, db, cancelOrder, nil, outbox.Key("taken"), outbox.StartAfter(time.Hour))
			for name, tt := range map[string]struct {
				opts []outbox.RerunOption
				is   error
			}{
				"key is taken":        {nil, outbox.ErrDuplicateKey},
				"arguments don't fit": {[]outbox.RerunOption{outbox.WithArgs(outbox.Args{"M": 2})}, outbox.ErrBadArgs},
				"bad option":          {[]outbox.RerunOption{outbox.Priority(0)}, outbox.ErrBadOption},
				"no option at all":    {[]outbox.RerunOption{nil}, outbox.ErrBadOption},
			} {
				t.Run(name, func(t *testing.T) {
					err := db.Transaction(func(tx *gorm.DB) error {
						if _, err := outbox.Rerun(tx, old.ID, tt.opts...); !errors.Is(err, tt.is) {
							t.Errorf("got %v", err)
						}
						return tx.Create(&shopOrder{}).Error
					})
					if err != nil {
						t.Errorf("the transaction was not usable: %v", err)
					}
					if _, err := outbox.Rerun(db, old.ID, tt.opts...); !errors.Is(err, tt.is) {
						t.Errorf("without a transaction: got %v", err)
					}
					unmarked(t, old.ID)
				})
			}
			_, err := outbox.Rerun(db, old.ID)
			heldBy(t, err, "taken", holder.ID)
			if _, err := outbox.Rerun(db, old.ID, outbox.Key("free"), outbox.StartAfter(time.Hour)); err != nil {
				t.Errorf("with another key: %v", err)
			}
		})
		t.Run("a rolled-back transaction takes it back", func(t *testing.T) {
			old := finished(t, cancelOrder, nil)
			var again *outbox.TaskModel
			_ = db.Transaction(func(tx *gorm.DB) (err error) {
				if again, err = outbox.Rerun(tx, old.ID); err != nil {
					t.Fatal(err)
				}
				return errors.New("undo")
			})
			if taskExists(t, db, again.ID) {
				t.Error("the new task is there")
			}
			unmarked(t, old.ID)
		})
		t.Run("a function that is gone", func(t *testing.T) {
			old := finished(t, cancelOrder, nil)
			mustRun(t, db, "UPDATE outbox_history SET func = 'services.OrderSvc.cancell' WHERE id = '"+old.ID+"'")
			if _, err := outbox.Rerun(db, old.ID); !errors.Is(err, outbox.ErrUnknownFunc) || !strings.Contains(err.Error(), cancelOrder) {
				t.Errorf("got %v", err)
			}
			unmarked(t, old.ID)
		})
	})
}
