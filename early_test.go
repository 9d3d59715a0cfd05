package outbox_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
)

// databaseNow is the database's own clock.
func databaseNow(db *gorm.DB) (now time.Time, err error) {
	if db.Dialector.Name() == "postgres" {
		return now, db.Raw("SELECT clock_timestamp()").Row().Scan(&now)
	}
	if db.Dialector.Name() == "mysql" {
		return now, db.Raw("SELECT UTC_TIMESTAMP(6)").Row().Scan(&now)
	}
	var text string
	if err = db.Raw("SELECT strftime('%Y-%m-%d %H:%M:%f', 'now') || ''").Row().Scan(&text); err == nil {
		now, err = time.Parse("2006-01-02 15:04:05.000", text)
	}
	return now, err
}

// punctual registers handlers that tell when they were early, or nil.
func punctual(p *outbox.Plugin, db *gorm.DB) <-chan error {
	ran := make(chan error, 10_000)
	check := func(ctx context.Context, db *gorm.DB) error {
		now, err := databaseNow(db)
		if task, _ := outbox.TaskFrom(ctx); err == nil && now.Before(task.RunAt) {
			err = fmt.Errorf("started at %v, %v before its start time", now, task.RunAt.Sub(now))
		}
		ran <- err
		return nil
	}
	p.Handle("note", func(ctx context.Context) error { return check(ctx, db) })
	p.Handle("note.tx", check)
	return ran
}

func TestNeverEarly(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		var ran <-chan error
		opts := hourly()
		opts.Concurrency = 4
		p := dbtest.Install(t, db, opts, func(p *outbox.Plugin) { ran = punctual(p, db) })
		dbtest.Start(t, p)
		dbtest.Create(t, db, "note", nil)
		if err := dbtest.Receive(t, ran); err != nil {
			t.Error(err)
		}
		const tasks = 200
		for i := range tasks {
			delay := rand.N(time.Second)
			start := outbox.StartAfter(delay)
			if i%2 == 0 {
				start = outbox.StartAt(time.Now().Add(delay)) // to the nanosecond
			}
			path := "note"
			if i%10 == 0 {
				path = "note.tx"
			}
			dbtest.Create(t, db, path, nil, start, outbox.Priority(1+i%4))
		}
		for range tasks {
			if err := dbtest.Receive(t, ran); err != nil {
				t.Error(err)
			}
		}
	})
}

// The zone of a process is fixed when it starts, so this needs another one.
func TestNeverEarlyInOtherTimeZones(t *testing.T) {
	t.Parallel()
	for _, zone := range []string{"Pacific/Apia", "America/St_Johns"} {
		t.Run(zone, func(t *testing.T) {
			child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestNeverEarly$", "-test.count=1", "-test.timeout=2m")
			child.Env = append(os.Environ(), "TZ="+zone)
			if out, err := child.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

func TestTimerMeetsStartTimes(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		var ran <-chan string
		opts := hourly()
		opts.Concurrency = 2
		started, leave := make(chan struct{}, 10), make(chan struct{})
		p := dbtest.Install(t, db, opts, func(p *outbox.Plugin) {
			ran = notes(p, "note")
			p.Handle("slow", func(context.Context) error { started <- struct{}{}; <-leave; return nil })
		})
		waiting := dbtest.Create(t, db, "note", nil, outbox.StartAfter(500*time.Millisecond))
		first := dbtest.Create(t, db, "note", nil)
		dbtest.Start(t, p)
		if got := dbtest.Receive(t, ran); got != first.ID {
			t.Errorf("%s ran first", got)
		}
		t.Run("of a task that was there before", func(t *testing.T) {
			if got := dbtest.Receive(t, ran); got != waiting.ID {
				t.Errorf("%s ran", got)
			}
		})
		t.Run("of a task that is created now", func(t *testing.T) {
			dbtest.Create(t, db, "note", nil, outbox.StartAfter(200*time.Millisecond))
			dbtest.Receive(t, ran)
		})
		t.Run("of one before and one after another", func(t *testing.T) {
			c := dbtest.Create(t, db, "note", nil, outbox.StartAfter(700*time.Millisecond))
			a := dbtest.Create(t, db, "note", nil, outbox.StartAfter(200*time.Millisecond))
			b := dbtest.Create(t, db, "note", nil, outbox.StartAfter(450*time.Millisecond), outbox.Queue("other"))
			for _, want := range []string{a.ID, b.ID, c.ID} {
				if got := dbtest.Receive(t, ran); got != want {
					t.Errorf("%s ran, want %s", got, want)
				}
			}
		})
		t.Run("when all slots were taken meanwhile", func(t *testing.T) {
			for range 2 {
				dbtest.Create(t, db, "slow", nil)
				dbtest.Receive(t, started)
			}
			dbtest.Create(t, db, "note", nil, outbox.StartAfter(100*time.Millisecond))
			later := dbtest.Create(t, db, "note", nil, outbox.StartAfter(900*time.Millisecond))
			held(300 * time.Millisecond)
			if len(ran) != 0 {
				t.Error("it ran without a slot")
			}
			close(leave)
			dbtest.Receive(t, ran)
			if got := dbtest.Receive(t, ran); got != later.ID {
				t.Errorf("%s ran, want %s", got, later.ID)
			}
		})
	})
}

// The start time is over, or has been forgotten in favour of an earlier one, when the transaction
// commits at last.
func TestStartTimeOfATransactionThatCommitsLate(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		var ran <-chan string
		p := dbtest.Install(t, db, hourly(), func(p *outbox.Plugin) { ran = notes(p, "note") })
		startAwake(t, db, p, "note", ran)
		late := func(t *testing.T, delay, open time.Duration) {
			t.Helper()
			var task *outbox.TaskModel
			err := db.Transaction(func(tx *gorm.DB) error {
				task = dbtest.Create(t, tx, "note", nil, outbox.StartAfter(delay))
				held(open)
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			for limit := time.After(5 * time.Second); ; {
				select {
				case id := <-ran:
					if id == task.ID {
						return
					}
				case <-limit:
					t.Error("only the next scan will find it")
					if err := outbox.Cancel(db, task.ID); err != nil {
						t.Error(err)
					}
					return
				}
			}
		}
		t.Run("after its start time", func(t *testing.T) { late(t, 50*time.Millisecond, 300*time.Millisecond) })
		t.Run("before its start time", func(t *testing.T) { late(t, 500*time.Millisecond, 100*time.Millisecond) })
		t.Run("before its start time, but after an earlier one", func(t *testing.T) {
			dbtest.Create(t, db, "note", nil, outbox.StartAfter(200*time.Millisecond))
			late(t, 700*time.Millisecond, 400*time.Millisecond)
		})
	})
}
