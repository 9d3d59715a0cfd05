package outbox_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
	"github.com/gorm-outbox/outbox/internal/dialect"
)

// logBuffer is a log that can be read while others write.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) lines(parts ...string) (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for line := range strings.Lines(b.buf.String()) {
		has := true
		for _, part := range parts {
			has = has && strings.Contains(line, part)
		}
		if has {
			n++
		}
	}
	return n
}

func (b *logBuffer) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(b, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// peers are plugins of processes that share a database.
func peers(t *testing.T, test func(t *testing.T, join func(outbox.Options, func(*outbox.Plugin)) (*gorm.DB, *outbox.Plugin))) {
	t.Helper()
	for _, d := range dbtest.Databases {
		t.Run(d.Name, func(t *testing.T) {
			dsn := d.DSN(t)
			test(t, func(opts outbox.Options, setup func(*outbox.Plugin)) (*gorm.DB, *outbox.Plugin) {
				db := openConfig(t, d.Dialect, dsn, &gorm.Config{})
				return db, dbtest.Install(t, db, opts, setup)
			})
		})
	}
}

// producer accepts whatever path there is.
func producer() outbox.Options {
	opts := quick()
	opts.ProducerOnly = true
	return opts
}

func inState(t *testing.T, db *gorm.DB, state outbox.State) int64 {
	t.Helper()
	return dbtest.Count(t, db.Where("state = ?", state), &outbox.TaskModel{})
}

func stateOf(t *testing.T, db *gorm.DB, id string) outbox.State {
	t.Helper()
	task, _, err := outbox.Lookup(db, id)
	if err != nil {
		t.Fatal(err)
	}
	if task == nil {
		return ""
	}
	return task.State
}

func TestTaskThatNobodyCanRunIsParked(t *testing.T) {
	peers(t, func(t *testing.T, join func(outbox.Options, func(*outbox.Plugin)) (*gorm.DB, *outbox.Plugin)) {
		var log logBuffer
		opts := producer()
		opts.Logger = log.logger()
		var ran <-chan string
		db, old := join(opts, func(p *outbox.Plugin) { ran = notes(p, "note") })
		var made []string
		for range 3 {
			made = append(made, dbtest.Create(t, db, "new.one", nil).ID, dbtest.Create(t, db, "new.two", nil).ID)
		}
		future := dbtest.Create(t, db, "new.one", nil, outbox.StartAfter(time.Hour))
		stop := dbtest.Start(t, old)
		dbtest.Eventually(t, "all that is due is parked", func() bool { return inState(t, db, outbox.StateParked) == 6 })
		t.Run("what is not due is not", func(t *testing.T) {
			if s := stateOf(t, db, future.ID); s != outbox.StatePending {
				t.Errorf("it is %s", s)
			}
		})
		t.Run("later ones too, and none was claimed", func(t *testing.T) {
			made = append(made, dbtest.Create(t, db, "new.one", nil).ID)
			dbtest.Eventually(t, "it is parked", func() bool { return inState(t, db, outbox.StateParked) == 7 })
			for _, id := range made {
				if task, _, err := outbox.Lookup(db, id); err != nil || task == nil || task.Attempt != 0 || task.StartedAt != nil || task.Version != 2 {
					t.Errorf("%+v, %v", task, err)
				}
			}
		})
		t.Run("logged once a path", func(t *testing.T) {
			for _, path := range []string{"new.one", "new.two"} {
				if n := log.lines("parked", "level=WARN", "func="+path); n != 1 {
					t.Errorf("%s: %d lines", path, n)
				}
			}
		})
		t.Run("cancelled", func(t *testing.T) {
			if err := outbox.Cancel(db, made[0]); err != nil {
				t.Error(err)
			}
			if past := dbtest.Ended(t, db, made[0]); past.Status != outbox.StatusCancelled {
				t.Errorf("%+v", past)
			}
		})
		t.Run("rescheduled, it waits, and is parked again when it is due", func(t *testing.T) {
			if err := outbox.Reschedule(db, made[1], time.Now().Add(time.Hour)); err != nil || stateOf(t, db, made[1]) != outbox.StatePending {
				t.Errorf("%v, %s", err, stateOf(t, db, made[1]))
			}
			if err := outbox.Reschedule(db, made[1], time.Now()); err != nil {
				t.Error(err)
			}
			dbtest.Eventually(t, "it is parked", func() bool { return stateOf(t, db, made[1]) == outbox.StateParked })
		})
		t.Run("RunDue of a process with the function brings it back", func(t *testing.T) {
			_, able := join(quick(), func(p *outbox.Plugin) {
				p.Handle("new.one", func(context.Context) error { return nil })
			})
			if n, err := able.RunDue(t.Context()); err != nil || n != 3 {
				t.Errorf("ran %d, %v; want 3", n, err)
			}
		})
		t.Run("Run of a process with the function brings it back, before any heartbeat", func(t *testing.T) {
			opts := hourly()
			opts.Heartbeat = time.Hour
			_, able := join(opts, func(p *outbox.Plugin) {
				p.Handle("new.two", func(context.Context) error { return nil })
			})
			dbtest.Start(t, able)
			for i := 1; i < 6; i += 2 {
				dbtest.Ended(t, db, made[i])
			}
		})
		stop()
		if n := len(ran); n != 0 {
			t.Errorf("the old process ran %d", n)
		}
	})
}

func TestRunDueParksToo(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		p := dbtest.Install(t, db, producer(), func(p *outbox.Plugin) { notes(p, "note") })
		task := dbtest.Create(t, db, "new", nil)
		dbtest.Create(t, db, "note", nil)
		if n, err := p.RunDue(t.Context()); n != 1 || err != nil {
			t.Errorf("ran %d, %v", n, err)
		}
		if s := stateOf(t, db, task.ID); s != outbox.StateParked {
			t.Errorf("it is %s", s)
		}
	})
}

func TestUnknownFunctionsDoNotBlockThePartition(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		var ran <-chan string
		opts := producer()
		opts.Concurrency = 2
		p := dbtest.Install(t, db, opts, func(p *outbox.Plugin) { ran = notes(p, "note") })
		const head = 3000
		batch := make([]outbox.NewTask, head)
		for i := range batch {
			batch[i] = outbox.NewTask{Func: fmt.Sprint("gone.f", i%3)}
		}
		if _, err := outbox.CreateBatch(db, batch...); err != nil {
			t.Fatal(err)
		}
		task := dbtest.Create(t, db, "note", nil)
		dbtest.Start(t, p)
		if got := dbtest.Receive(t, ran); got != task.ID {
			t.Errorf("%s ran", got)
		}
		dbtest.Eventually(t, "the head is parked", func() bool { return inState(t, db, outbox.StateParked) == head })
		for range 20 {
			dbtest.Create(t, db, "note", nil)
			dbtest.Receive(t, ran)
		}
	})
}

func TestFunctionOfAnotherLiveProcessIsLeftToIt(t *testing.T) {
	peers(t, func(t *testing.T, join func(outbox.Options, func(*outbox.Plugin)) (*gorm.DB, *outbox.Plugin)) {
		busy := quick()
		busy.Concurrency = 1
		started, leave := make(chan struct{}, 10), make(chan struct{})
		db, able := join(busy, func(p *outbox.Plugin) {
			p.Handle("new", func(context.Context) error { started <- struct{}{}; <-leave; return nil })
		})
		dbtest.Start(t, able)
		letGo := sync.OnceFunc(func() { close(leave) })
		t.Cleanup(letGo)
		first := dbtest.Create(t, db, "new", nil)
		dbtest.Receive(t, started)
		var log logBuffer
		opts := producer()
		opts.Logger = log.logger()
		db, old := join(opts, func(p *outbox.Plugin) { notes(p, "note") })
		second := dbtest.Create(t, db, "new", nil)
		elsewhere := dbtest.Create(t, db, "gone", nil)
		dbtest.Start(t, old)
		dbtest.Eventually(t, "the old process has looked", func() bool { return stateOf(t, db, elsewhere.ID) == outbox.StateParked })
		for range 3 {
			again := dbtest.Create(t, db, "gone", nil)
			dbtest.Eventually(t, "and looked again", func() bool { return stateOf(t, db, again.ID) == outbox.StateParked })
			task, _, err := outbox.Lookup(db, second.ID)
			if err != nil || task == nil || task.State != outbox.StatePending || task.Version != 1 {
				t.Fatalf("the task of the other: %+v, %v", task, err)
			}
		}
		if n := log.lines("parked", "func=new"); n != 0 {
			t.Errorf("%d lines about it", n)
		}
		letGo()
		for _, id := range []string{first.ID, second.ID} {
			if past := dbtest.Ended(t, db, id); past.Status != outbox.StatusSuccess || past.Attempt != 1 {
				t.Errorf("%+v", past)
			}
		}
	})
}

func TestProcessThatServesAnotherQueueDoesNotCount(t *testing.T) {
	peers(t, func(t *testing.T, join func(outbox.Options, func(*outbox.Plugin)) (*gorm.DB, *outbox.Plugin)) {
		opts := quick()
		opts.Queues = []string{"mail"}
		var ran <-chan string
		db, mail := join(opts, func(p *outbox.Plugin) { ran = notes(p, "new") })
		dbtest.Start(t, mail)
		dbtest.Eventually(t, "it has started", func() bool { return dbtest.Count(t, db, &outbox.ProcessModel{}) == 1 })
		_, old := join(producer(), func(p *outbox.Plugin) { notes(p, "note") })
		dbtest.Start(t, old)
		parked := dbtest.Create(t, db, "new", nil)
		dbtest.Eventually(t, "it is parked", func() bool { return stateOf(t, db, parked.ID) == outbox.StateParked })
		served := dbtest.Create(t, db, "new", nil, outbox.Queue("mail"))
		if got := dbtest.Receive(t, ran); got != served.ID {
			t.Errorf("%s ran", got)
		}
		t.Run("and does not bring it back", func(t *testing.T) {
			_, again := join(opts, func(p *outbox.Plugin) { notes(p, "new") })
			if n, err := again.RunDue(t.Context()); n != 0 || err != nil || stateOf(t, db, parked.ID) != outbox.StateParked {
				t.Errorf("ran %d, %v, it is %s", n, err, stateOf(t, db, parked.ID))
			}
		})
	})
}

func TestAliasRunsOldTasks(t *testing.T) {
	peers(t, func(t *testing.T, join func(outbox.Options, func(*outbox.Plugin)) (*gorm.DB, *outbox.Plugin)) {
		db, _ := join(producer(), nil)
		tasks := []*outbox.TaskModel{dbtest.Create(t, db, "old.name", nil), dbtest.Create(t, db, "old.tx", nil), dbtest.Create(t, db, "new.name", nil)}
		var ran <-chan string
		_, p := join(quick(), func(p *outbox.Plugin) {
			ran = notes(p, "new.name")
			p.Handle("new.tx", func(context.Context, *gorm.DB) error { return nil })
			p.Alias("old.name", "new.name")
			p.Alias("old.tx", "new.tx")
		})
		dbtest.Start(t, p)
		for _, task := range tasks {
			if past := dbtest.Ended(t, db, task.ID); past.Status != outbox.StatusSuccess || past.Func != task.Func {
				t.Errorf("%+v", past)
			}
		}
		if len(ran) != 2 {
			t.Errorf("the handler ran %d times", len(ran))
		}
	})
	t.Run("to nowhere fails Run and RunDue", func(t *testing.T) {
		dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
			p := dbtest.Install(t, db, quick(), func(p *outbox.Plugin) {
				notes(p, "orders.cancel")
				p.Alias("orders.kancel", "orders.cancle")
			})
			_, due := p.RunDue(t.Context())
			for _, err := range []error{p.Run(t.Context()), due} {
				if !errors.Is(err, outbox.ErrUnknownFunc) || !strings.Contains(err.Error(), "alias orders.kancel") ||
					!strings.Contains(err.Error(), "did you mean orders.cancel?") {
					t.Errorf("got %v", err)
				}
			}
			if n := dbtest.Count(t, db, &outbox.ProcessModel{}); n != 0 {
				t.Errorf("%d process rows are left", n)
			}
		})
	})
}

func TestRollingDeploy(t *testing.T) {
	t.Parallel()
	peers(t, func(t *testing.T, join func(outbox.Options, func(*outbox.Plugin)) (*gorm.DB, *outbox.Plugin)) {
		opts := producer()
		opts.Concurrency = 3
		var byOld, byNew, news <-chan string
		db, old := join(opts, func(p *outbox.Plugin) { byOld = notes(p, "kept") })
		stopOld := dbtest.Start(t, old)
		const each = 60
		var ids []string
		make := func() {
			for range each {
				ids = append(ids, dbtest.Create(t, db, "kept", nil).ID, dbtest.Create(t, db, "added", nil).ID)
			}
		}
		make()
		dbtest.Eventually(t, "the new function's tasks are parked, the others have run", func() bool {
			return inState(t, db, outbox.StateParked) == each && dbtest.Count(t, db, &outbox.TaskModel{}) == each
		})
		_, current := join(opts, func(p *outbox.Plugin) { byNew, news = notes(p, "kept"), notes(p, "added") })
		dbtest.Start(t, current)
		make()
		stopOld()
		make()
		for _, id := range ids {
			if past := dbtest.Ended(t, db, id); past.Status != outbox.StatusSuccess || past.Attempt-past.Uncounted != 1 {
				t.Errorf("%+v", past) // a claim that the old process had no time to start goes back, uncounted
			}
		}
		if len(news) != 3*each || len(byOld)+len(byNew) != 3*each || len(byOld) < each {
			t.Errorf("added ran %d times, kept %d times in the old and %d times in the new process", len(news), len(byOld), len(byNew))
		}
	})
}

// late is a park by somebody who looked before this process was known, which ends just after this
// one has looked.
type late struct {
	dialect.Dialect
	done   *atomic.Bool
	parked chan<- error
}

func (l late) Unpark(ctx context.Context, c dialect.Conn, funcs, queues []string, limit int) (int64, error) {
	n, err := l.Dialect.Unpark(ctx, c, funcs, queues, limit)
	if err == nil && n > 0 && l.done.CompareAndSwap(false, true) {
		_, err := c.ExecContext(ctx, l.Rebind("UPDATE {tasks} SET state = 'parked' WHERE state = 'pending'"))
		l.parked <- err
	}
	return n, err
}

func TestTaskIsParkedJustAfterItsProcessHasLooked(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		opts := hourly()
		opts.Heartbeat, opts.HeartbeatLimit, opts.Concurrency = time.Hour, 3*time.Hour, 1
		gate := make(chan struct{})
		p := dbtest.Install(t, db, opts, func(p *outbox.Plugin) {
			p.Handle("held", func(context.Context) error { <-gate; return nil }) // so that nothing is claimed between the two
			p.Handle("parked", func(context.Context) error { return nil })
		})
		parked := make(chan error, 1)
		p.Intercept(func(d dialect.Dialect) dialect.Dialect { return late{d, new(atomic.Bool), parked} })
		dbtest.Create(t, db, "held", nil)
		id := dbtest.Create(t, db, "parked", nil, outbox.Priority(4)).ID
		mustRun(t, db, "UPDATE outbox_tasks SET state = 'parked' WHERE func = 'parked'")
		dbtest.Start(t, p)
		if err := dbtest.Receive(t, parked); err != nil {
			t.Fatal(err)
		}
		close(gate)
		if past := dbtest.Ended(t, db, id); past.Status != outbox.StatusSuccess {
			t.Errorf("%+v", past)
		}
	})
}
