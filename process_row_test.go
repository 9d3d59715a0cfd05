package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
)

// processRow is the row of the only process, another one than not.
func processRow(t *testing.T, db *gorm.DB, not string) (m outbox.ProcessModel) {
	t.Helper()
	dbtest.Eventually(t, "the process has a row", func() bool {
		return db.Where("id <> ?", not).Limit(1).Find(&m).RowsAffected == 1
	})
	return m
}

func dropProcesses(t *testing.T, db *gorm.DB) {
	t.Helper()
	if err := db.Where("1 = 1").Delete(&outbox.ProcessModel{}).Error; err != nil {
		t.Fatal(err)
	}
}

func TestProcessDeclaredDeadWhileHandlersRun(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		if err := db.AutoMigrate(&effect{}); err != nil {
			t.Fatal(err)
		}
		type end struct {
			task  *outbox.TaskModel
			cause error
		}
		started, told, ends := make(chan string, 10), make(chan end, 10), make(chan end, 20)
		leave := make(chan struct{})
		first := func(ctx context.Context) error {
			task, _ := outbox.TaskFrom(ctx)
			if task.Attempt > 1 {
				return nil
			}
			started <- task.Func
			<-ctx.Done()
			told <- end{task, context.Cause(ctx)}
			<-leave
			return nil
		}
		p := dbtest.Install(t, db, dbtest.ShortHeartbeats(finishHook(func(task *outbox.TaskModel, f outbox.Outcome) { ends <- end{task, f.Err} })),
			func(p *outbox.Plugin) {
				p.Handle("ordinary", first)
				p.Handle("idempotent", first, outbox.Idempotent())
				p.Handle("transactional", func(ctx context.Context, tx *gorm.DB) error {
					task, _ := outbox.TaskFrom(ctx)
					if err := tx.Create(&effect{Task: task.ID}).Error; err != nil {
						return err
					}
					return first(ctx)
				})
				p.Handle("quick", func(context.Context) error { return nil })
			})
		tasks := map[string]*outbox.TaskModel{}
		for _, path := range []string{"ordinary", "idempotent", "transactional"} {
			if path == "transactional" && db.Name() == "sqlite" {
				continue // it would keep everybody from deleting the row
			}
			tasks[path] = dbtest.Create(t, db, path, nil)
		}
		dbtest.Start(t, p)
		before := processRow(t, db, "")
		for range tasks {
			dbtest.Receive(t, started)
		}
		dropProcesses(t, db)
		for range tasks {
			if e := dbtest.Receive(t, told); !errors.Is(e.cause, outbox.ErrClaimLost) {
				t.Errorf("%s: the context ended with %v", e.task.Func, e.cause)
			}
		}
		after := processRow(t, db, before.ID)
		past := map[string]*outbox.HistoryModel{}
		for path, task := range tasks {
			past[path] = dbtest.Ended(t, db, task.ID)
		}
		close(leave)
		refused := 0
		for refused < len(tasks) {
			if e := dbtest.Receive(t, ends); e.task.Attempt == 1 {
				refused++
				if !errors.Is(e.cause, outbox.ErrClaimLost) {
					t.Errorf("%s: its late outcome: %v", e.task.Func, e.cause)
				}
			}
		}
		for path, h := range past {
			want, attempt := outbox.StatusSuccess, 2
			if path == "ordinary" {
				want, attempt = outbox.StatusError, 1
			}
			if h.Status != want || h.Attempt != attempt {
				t.Errorf("%s: %+v", path, h)
			}
			if now := dbtest.Ended(t, db, h.ID); now.Version != h.Version || now.Status != h.Status {
				t.Errorf("%s: history has changed to %+v", path, now)
			}
		}
		if task := tasks["transactional"]; task != nil && effects(t, db, task.ID) != 1 {
			t.Errorf("%d effects, want 1", effects(t, db, task.ID))
		}
		if h := dbtest.Ended(t, db, dbtest.Create(t, db, "quick", nil).ID); h.Status != outbox.StatusSuccess || *h.ProcessID != after.ID {
			t.Errorf("a new task: %+v, want success by %s", h, after.ID)
		}
	})
}

func TestProcessWithoutRowClaimsNothing(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		opts := dbtest.ShortHeartbeats()
		opts.Heartbeat, opts.HeartbeatLimit = time.Second, 9*time.Second
		p := dbtest.Install(t, db, opts, func(p *outbox.Plugin) { p.Handle("quick", func(context.Context) error { return nil }) })
		dbtest.Start(t, p)
		before := processRow(t, db, "")
		dbtest.Ended(t, db, dbtest.Create(t, db, "quick", nil).ID)
		var task *outbox.TaskModel
		if err := db.Transaction(func(tx *gorm.DB) (err error) {
			task, err = outbox.Create(tx, "quick", nil)
			return errors.Join(err, tx.Where("id = ?", before.ID).Delete(&outbox.ProcessModel{}).Error)
		}); err != nil {
			t.Fatal(err)
		}
		h := dbtest.Ended(t, db, task.ID)
		if after := processRow(t, db, before.ID); *h.ProcessID != after.ID || h.Status != outbox.StatusSuccess || h.Attempt != 1 {
			t.Errorf("%+v; want one run by %s", h, after.ID)
		}
	})
}

func TestHeartbeatSavesFromExpiry(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		p := dbtest.Install(t, db, dbtest.ShortHeartbeats(), nil)
		m := outbox.ProcessModel{ID: "other", Functions: outbox.JSON("[]"), StartedAt: time.Now().UTC(), BeatAt: time.Now().UTC(), Beats: 7}
		if err := db.Create(&m).Error; err != nil {
			t.Fatal(err)
		}
		for _, tt := range []struct {
			name   string
			beats  int64
			buried bool
		}{{"it has beaten since", 6, false}, {"it has stood still", 7, true}, {"it is gone", 7, false}} {
			t.Run(tt.name, func(t *testing.T) {
				if buried, err := p.Expire(t.Context(), m.ID, tt.beats); err != nil || buried != tt.buried {
					t.Errorf("buried %v, %v", buried, err)
				}
			})
		}
	})
}

func TestRunDueRescuesOnlyFromTheLongDead(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		now := time.Now().UTC().Truncate(time.Millisecond)
		opts := dbtest.ShortHeartbeats()
		opts.Clock = func() time.Time { return now }
		p := dbtest.Install(t, db, opts, func(p *outbox.Plugin) {
			p.Handle("quick", func(context.Context) error { t.Error("an interrupted task was run again"); return nil })
		})
		running := func(process string, age time.Duration) string {
			if age >= 0 {
				m := outbox.ProcessModel{ID: process, Functions: outbox.JSON("[]"), StartedAt: now, BeatAt: now.Add(-age), Beats: 1}
				if err := db.Create(&m).Error; err != nil {
					t.Fatal(err)
				}
			}
			id := dbtest.Create(t, db, "quick", nil).ID
			if err := db.Model(&outbox.TaskModel{}).Where("id = ?", id).Updates(map[string]any{
				"state": outbox.StateRunning, "attempt": 1, "version": 2, "process_id": process, "started_at": now,
			}).Error; err != nil {
				t.Fatal(err)
			}
			return id
		}
		for _, tt := range []struct {
			name, process string
			age           time.Duration
			taken         bool
		}{
			{"just beaten", "a", 0, false},
			{"one limit and more", "b", dbtest.ShortLimit + time.Second, false},
			{"not quite three limits", "c", 3*dbtest.ShortLimit - time.Millisecond, false},
			{"over three limits", "d", 3*dbtest.ShortLimit + time.Millisecond, true},
			{"no process row", "e", -1, true},
		} {
			t.Run(tt.name, func(t *testing.T) {
				id := running(tt.process, tt.age)
				if n, err := p.RunDue(t.Context()); err != nil || n != 0 {
					t.Fatalf("ran %d, %v", n, err)
				}
				task, past, err := outbox.Lookup(db, id)
				if err != nil || (past != nil) != tt.taken || past == nil && (task.State != outbox.StateRunning || task.Version != 2) ||
					past != nil && past.Reason != outbox.ReasonInterrupted {
					t.Errorf("%+v, %+v, %v", task, past, err)
				}
				var rows int64
				db.Model(&outbox.ProcessModel{}).Where("id = ?", tt.process).Count(&rows)
				if (rows == 0) != tt.taken {
					t.Errorf("%d process rows", rows)
				}
			})
		}
	})
}

func TestRunDueBesideOthers(t *testing.T) {
	for _, withRun := range []bool{false, true} {
		name := map[bool]string{false: "two RunDue", true: "Run and RunDue"}[withRun]
		t.Run(name, func(t *testing.T) {
			dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
				const tasks = 200
				var mu sync.Mutex
				runs, ran := map[string]int{}, atomic.Int64{}
				opts := dbtest.ShortHeartbeats()
				opts.HeartbeatLimit = time.Minute // nobody is taken for dead, however slow the machine is
				p := dbtest.Install(t, db, opts, func(p *outbox.Plugin) {
					note := func(ctx context.Context) error {
						task, _ := outbox.TaskFrom(ctx)
						mu.Lock()
						defer mu.Unlock()
						runs[task.ID]++
						return nil
					}
					p.Handle("ordinary", note)
					p.Handle("transactional", func(ctx context.Context, _ *gorm.DB) error { return note(ctx) })
				})
				batch := make([]outbox.NewTask, tasks)
				for i := range batch {
					batch[i].Func = []string{"ordinary", "transactional"}[i%2]
				}
				if _, err := outbox.CreateBatch(db, batch...); err != nil {
					t.Fatal(err)
				}
				if withRun {
					dbtest.Start(t, p)
				}
				var wg sync.WaitGroup
				for range 2 {
					wg.Go(func() {
						n, err := p.RunDue(context.Background())
						if err != nil {
							t.Error(err)
						}
						ran.Add(int64(n))
					})
				}
				wg.Wait()
				dbtest.Eventually(t, "all have ended", func() bool { return dbtest.Count(t, db, &outbox.HistoryModel{}) == tasks })
				mu.Lock()
				defer mu.Unlock()
				for id, n := range runs {
					if n != 1 {
						t.Errorf("%s ran %d times", id, n)
					}
				}
				if len(runs) != tasks || !withRun && ran.Load() != tasks || ran.Load() > tasks {
					t.Errorf("%d tasks ran, RunDue says %d; want %d", len(runs), ran.Load(), tasks)
				}
				if want := map[bool]int64{true: 1}[withRun]; dbtest.Count(t, db, &outbox.ProcessModel{}) != want {
					t.Errorf("%d process rows, want %d", dbtest.Count(t, db, &outbox.ProcessModel{}), want)
				}
			})
		})
	}
}

// A handler that ignores its time limit keeps its slot; RunDue says so, and does not wait for it
// for ever, also where it has the only slot.
func TestRunDueLeavesAHandlerThatIgnoresItsTimeout(t *testing.T) {
	t.Parallel()
	for _, slots := range []int{1, 2} {
		t.Run(fmt.Sprintf("%d slots", slots), func(t *testing.T) {
			dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
				leave := make(chan struct{})
				defer close(leave)
				opts := quick()
				opts.CancelGrace, opts.Concurrency = 50*time.Millisecond, slots
				p := dbtest.Install(t, db, opts, func(p *outbox.Plugin) {
					p.Handle("deaf", func(context.Context) error { <-leave; return nil })
					p.Handle("fine", func(context.Context) error { return nil })
				})
				deaf := dbtest.Create(t, db, "deaf", nil, outbox.Timeout(20*time.Millisecond), outbox.Priority(1)).ID
				fine := dbtest.Create(t, db, "fine", nil).ID
				done := make(chan error, 1)
				go func() {
					_, err := p.RunDue(context.Background())
					done <- err
				}()
				if err := dbtest.Receive(t, done); err == nil || !strings.Contains(err.Error(), "1 handlers ignored") {
					t.Errorf("got %v", err)
				}
				if past := dbtest.Ended(t, db, deaf); past.Reason != outbox.ReasonTimeout {
					t.Errorf("%+v", past)
				}
				task, past, err := outbox.Lookup(db, fine)
				if err != nil || slots > 1 && (past == nil || past.Status != outbox.StatusSuccess) || slots == 1 && (task == nil || task.Attempt != 0) {
					t.Errorf("%+v, %+v, %v", task, past, err)
				}
			})
		})
	}
}
