package scenarios_test

import (
	"context"
	"os"
	"runtime/debug"
	"sync"
	"testing"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
)

// fatal handlers end their process in ways that no recover stops.
var fatal = map[string]func(){
	"exit": func() { os.Exit(3) },
	"stack": func() {
		debug.SetMaxStack(1 << 20)
		var deeper func(int) int
		deeper = func(n int) int { return deeper(n+1) + 1 }
		deeper(0)
	},
	"maps": func() {
		m := map[int]int{}
		for range 4 {
			go func() {
				for i := 0; ; i++ {
					m[i%8] = i
				}
			}()
		}
		select {}
	},
	"mutex": func() { new(sync.Mutex).Unlock() },
	"kill":  die,
}

func init() {
	// param: the queue, named after the fatal handler
	roles["fatal"] = func(s *self) error {
		return s.dispatch(context.Background(), quick(patient, func(o *outbox.Options) { o.Queues = []string{s.param} }), func(p *outbox.Plugin) {
			end := func(context.Context) error { fatal[s.param](); return nil }
			p.Handle("poison", end)
			p.Handle("poison.idempotent", end, outbox.Idempotent())
			p.Handle("poison.tx", func(ctx context.Context, tx *gorm.DB) error {
				if err := leave(ctx, tx); err != nil {
					return err
				}
				return end(ctx)
			})
			p.Handle("fine", fine)
		})
	}
}

// A process is started again each time that a handler has ended it, as by systemd. Every task has
// its end, within the runs that it is allowed.
func TestHandlerEndsItsProcess(t *testing.T) {
	each(t, func(t *testing.T, d database, dsn string) {
		db := d.open(t, dsn, nil)
		// The observer judges, but has no function of theirs.
		observer := dbtest.Install(t, db, quick(func(o *outbox.Options) { o.ProducerOnly = true }), func(p *outbox.Plugin) { p.Handle("other", fine) })
		dbtest.Start(t, observer)
		for name := range fatal {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				poison := map[string]*outbox.TaskModel{}
				for kind, max := range map[string]int{"poison": 2, "poison.idempotent": 1, "poison.tx": 1} {
					poison[kind] = dbtest.Create(t, db, kind, nil, outbox.Queue(name), outbox.MaxAttempts(max))
				}
				var others []*outbox.TaskModel
				for range 5 {
					others = append(others, dbtest.Create(t, db, "fine", nil, outbox.Queue(name), outbox.MaxAttempts(20)))
				}
				unfinished := func() bool { return dbtest.Count(t, db.Where("queue = ?", name), &outbox.TaskModel{}) > 0 }
				for starts := 0; unfinished(); starts++ {
					if starts > 15 {
						t.Fatal("it does not end")
					}
					c := spawn(t, d, dsn, "fatal", name)
					dbtest.Eventually(t, "the child dies, or there is nothing left to do", func() bool {
						select {
						case <-c.ended:
							return true
						default:
							return !unfinished()
						}
					})
				}
				for kind, task := range poison {
					h, crashes := dbtest.Ended(t, db, task.ID), 3
					if kind == "poison" {
						crashes = 0
					}
					if h.Status != outbox.StatusError || h.Reason != outbox.ReasonInterrupted || h.Crashes != crashes || h.Attempt > 3 ||
						h.Attempt-h.Uncounted > h.MaxAttempts {
						t.Errorf("%s: %+v", kind, h)
					}
				}
				if n := effects(t, db, poison["poison.tx"].ID); n != 0 {
					t.Errorf("%d effects", n)
				}
				for _, task := range others {
					if h := dbtest.Ended(t, db, task.ID); h.Status != outbox.StatusSuccess {
						t.Errorf("another task: %+v", h)
					}
				}
			})
		}
	})
}
