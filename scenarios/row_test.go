package scenarios_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
)

// Somebody changes a task's row by hand while it runs. The run's outcome is refused or finds its
// row; nothing of a refused transactional run stays, and the others go on.
func TestRowChangesWhileItRuns(t *testing.T) {
	each(t, func(t *testing.T, d database, _ string) {
		for _, tt := range []struct {
			name, change string
			refused      bool
		}{
			{"deleted", "DELETE FROM outbox_tasks WHERE id = ?", true},
			// not to be claimed again: parked it would be unparked
			{"given back", "UPDATE outbox_tasks SET state = 'pending', run_at = '2999-01-01 00:00:00', version = version + 1, process_id = NULL WHERE id = ?", true},
			// nor to be found as a claim of this process without a run
			{"fenced off", "UPDATE outbox_tasks SET version = version + 5, process_id = 'other' WHERE id = ?", true},
			{"edited in what the fence does not hold", "UPDATE outbox_tasks SET priority = 4, args = '{}' WHERE id = ?", false},
		} {
			for _, kind := range []string{"held", "held.tx"} {
				if kind == "held.tx" && d.name == "sqlite" {
					continue // its transaction keeps everybody from changing a row
				}
				t.Run(tt.name+" "+kind, func(t *testing.T) {
					t.Parallel()
					db := d.open(t, d.dsn(t), nil)
					started, leaving, told := make(chan string, 1), make(chan struct{}), make(chan error, 10)
					opts := quick(patient, func(o *outbox.Options) {
						o.Hooks = []outbox.Hooks{finishHook{told: func(task *outbox.TaskModel, f outbox.Outcome) {
							if task.Func == kind {
								told <- f.Err
							}
						}}}
					})
					p := dbtest.Install(t, db, opts, func(p *outbox.Plugin) {
						held := func(context.Context) error { started <- ""; <-leaving; return nil }
						p.Handle("held", held)
						p.Handle("held.tx", func(ctx context.Context, tx *gorm.DB) error { return errors.Join(leave(ctx, tx), held(ctx)) })
						p.Handle("fine", fine)
					})
					other := outbox.ProcessModel{ID: "other", Functions: outbox.JSON("[]"), StartedAt: time.Now(), BeatAt: time.Now(), Beats: 1}
					if err := db.Create(&other).Error; err != nil {
						t.Fatal(err)
					}
					stop := dbtest.Start(t, p)
					task := dbtest.Create(t, db, kind, nil)
					dbtest.Receive(t, started)
					run(t, db, tt.change, task.ID)
					close(leaving)
					err := dbtest.Receive(t, told)
					_, past, lookup := outbox.Lookup(db, task.ID)
					if errors.Is(err, outbox.ErrClaimLost) != tt.refused || (past == nil) != tt.refused {
						t.Errorf("told %v; %+v, %v", err, past, lookup)
					}
					if n := effects(t, db, task.ID); tt.refused && n != 0 {
						t.Errorf("%d effects of a refused run", n)
					}
					if h := dbtest.Ended(t, db, dbtest.Create(t, db, "fine", nil).ID); h.Status != outbox.StatusSuccess {
						t.Errorf("another task: %+v", h)
					}
					stop()
					if n := dbtest.Count(t, db.Where("id <> ?", other.ID), &outbox.ProcessModel{}); n != 0 {
						t.Errorf("%d process rows are left beside the other's", n)
					}
				})
			}
		}
	})
}
