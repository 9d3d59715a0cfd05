package scenarios_test

import (
	"context"
	"errors"
	"os"
	"syscall"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
)

type finishHook struct {
	outbox.NopHooks
	told func(*outbox.TaskModel, outbox.Outcome)
}

func (h finishHook) OnFinish(_ context.Context, task *outbox.TaskModel, f outbox.Outcome) {
	h.told(task, f)
}

func init() {
	// Its handlers end when the parent says so, whatever their contexts say; param: how.
	roles["freezes"] = func(s *self) error {
		opts := quick(patient, func(o *outbox.Options) {
			o.Hooks = []outbox.Hooks{finishHook{told: func(task *outbox.TaskModel, f outbox.Outcome) {
				say("finished", task.ID, errors.Is(f.Err, outbox.ErrClaimLost))
			}}}
		})
		return s.dispatch(context.Background(), opts, func(p *outbox.Plugin) {
			run := func(ctx context.Context) error {
				task, _ := outbox.TaskFrom(ctx)
				say("started", task.ID)
				<-s.told
				if s.param == "error" {
					return errors.New("of the zombie")
				}
				return nil
			}
			p.Handle("ordinary", run)
			p.Handle("transactional", func(ctx context.Context, tx *gorm.DB) error {
				return errors.Join(leave(ctx, tx), run(ctx))
			})
		})
	}
}

// A process is stopped for longer than the heartbeat limit, and wakes up while the second run goes
// on. Its outcome, whether it is a success or an error, changes nothing.
func TestZombieCannotWrite(t *testing.T) {
	each(t, func(t *testing.T, d database, dsn string) {
		for _, kind := range []string{"ordinary", "transactional"} {
			if kind == "transactional" && d.name == "sqlite" {
				continue // its transaction keeps everybody from taking over: the root's TestStoppedProcessCannotWrite
			}
			for _, how := range []string{"success", "error"} {
				t.Run(kind+" "+how, func(t *testing.T) {
					t.Parallel()
					dsn := d.dsn(t)
					db := d.open(t, dsn, nil)
					started, leaving := make(chan string, 10), make(chan struct{})
					p := dbtest.Install(t, db, quick(), func(p *outbox.Plugin) {
						run := func(ctx context.Context) error {
							task, _ := outbox.TaskFrom(ctx)
							started <- task.ID
							<-leaving
							return nil
						}
						p.Handle("ordinary", run)
						p.Handle("transactional", func(ctx context.Context, tx *gorm.DB) error {
							return errors.Join(leave(ctx, tx), run(ctx))
						})
					})
					task := dbtest.Create(t, db, kind, nil, outbox.MaxAttempts(5))
					zombie := spawn(t, d, dsn, "freezes", how)
					zombie.says(t, "started "+task.ID)
					zombie.freeze(t, db)
					dbtest.Start(t, p)
					dbtest.Receive(t, started)
					during, _, err := outbox.Lookup(db, task.ID)
					if err != nil || during == nil {
						t.Fatal(during, err)
					}
					zombie.signal(t, syscall.SIGCONT)
					zombie.letGo()
					zombie.says(t, "finished "+task.ID+" true")
					if now, past, err := outbox.Lookup(db, task.ID); err != nil || past != nil || now.Version != during.Version || now.State != outbox.StateRunning {
						t.Errorf("the zombie has changed the task: %+v, %+v, %v", now, past, err)
					}
					close(leaving)
					h := dbtest.Ended(t, db, task.ID)
					if h.Status != outbox.StatusSuccess || h.Version != during.Version || *h.ProcessID != *during.ProcessID {
						t.Errorf("%+v; want success of %+v", h, during)
					}
					if n := effects(t, db, task.ID); kind == "transactional" && n != 1 {
						t.Errorf("%d effects", n)
					}
				})
			}
		}
	})
}

// In a container every start has the same host name and often the same pid.
func TestRestartWithTheSameHostAndPID(t *testing.T) {
	each(t, func(t *testing.T, d database, dsn string) {
		db := d.open(t, dsn, nil)
		p := dbtest.Install(t, db, quick(), func(p *outbox.Plugin) { p.Handle("ordinary", fine) })
		host, err := os.Hostname()
		if err != nil {
			t.Fatal(err)
		}
		now := time.Now().UTC()
		before := outbox.ProcessModel{ID: "before", Host: host, PID: int64(os.Getpid()), Functions: outbox.JSON(`["ordinary"]`),
			Slots: 10, StartedAt: now, BeatAt: now, Beats: 5}
		if err := db.Create(&before).Error; err != nil {
			t.Fatal(err)
		}
		task := dbtest.Create(t, db, "ordinary", nil, outbox.MaxAttempts(2))
		run(t, db, "UPDATE outbox_tasks SET state = 'running', attempt = 1, version = 2, process_id = 'before', started_at = created_at")
		dbtest.Start(t, p)
		h := dbtest.Ended(t, db, task.ID)
		if h.Status != outbox.StatusSuccess || h.Attempt != 2 || len(h.Errors) != 1 || h.Errors[0].Reason != outbox.ReasonInterrupted {
			t.Errorf("%+v", h)
		}
	})
}
