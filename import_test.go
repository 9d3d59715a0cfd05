package outbox_test

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
)

// An import of somebody's own may write SQLite's times as numbers, which sort before every text.
// The task is not early for it, and not lost.
func TestStartTimeImportedAsANumber(t *testing.T) {
	for unit, number := range map[string]func(time.Time) int64{
		"s": time.Time.Unix, "ms": time.Time.UnixMilli, "µs": time.Time.UnixMicro, "ns": time.Time.UnixNano,
	} {
		t.Run(unit, func(t *testing.T) {
			dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
				if db.Name() != "sqlite" {
					t.Skip("its columns take times only")
				}
				read := unit == "s" || unit == "ms" // others the driver itself takes for milliseconds when it reads a time column
				var log strings.Builder
				p, ran := shop(t, db, outbox.Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
				at := time.Now().Add(time.Hour).Truncate(time.Second)
				later, due := dbtest.Create(t, db, cancelOrder, nil).ID, dbtest.Create(t, db, cancelOrder, nil).ID
				for id, at := range map[string]time.Time{later: at, due: at.Add(-2 * time.Hour)} {
					if err := db.Exec("UPDATE outbox_tasks SET run_at = ?, created_at = ? WHERE id = ?", number(at), number(at), id).Error; err != nil {
						t.Fatal(err)
					}
				}
				for range 2 {
					if _, err := p.RunDue(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				if got := dbtest.Receive(t, ran); got != due || len(ran) > 0 {
					t.Errorf("task %s ran and %d more, want only %s", got, len(ran), due)
				}
				if past := dbtest.Ended(t, db, due); past.Status != outbox.StatusSuccess || read && !past.RunAt.Equal(at.Add(-2*time.Hour)) {
					t.Errorf("the due one ended as %+v", past)
				}
				task, _, err := outbox.Lookup(db, later)
				if err != nil {
					t.Fatal(err)
				}
				// The pause is told in milliseconds there.
				if off := task.RunAt.Sub(at); task.State != outbox.StatePending || off < 0 || off > 10*time.Second || read && !task.CreatedAt.Equal(at) {
					t.Errorf("it waits for %v, want %v: %+v", task.RunAt, at, task)
				}
				var kind string
				if err := db.Raw("SELECT typeof(run_at) FROM outbox_tasks WHERE id = ?", later).Scan(&kind).Error; err != nil || kind != "text" {
					t.Errorf("the start time is %s, %v", kind, err)
				}
				if n := strings.Count(log.String(), "another form"); n != 1 || !strings.Contains(log.String(), cancelOrder) {
					t.Errorf("said %d times:\n%s", n, log.String())
				}
			})
		})
	}
}

// The log and the hooks tell of which function a row is that cannot be read.
func TestUnreadableRowTellsItsFunction(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		if db.Name() != "sqlite" {
			t.Skip("its columns take only what can be read")
		}
		var log strings.Builder
		p, _ := shop(t, db, outbox.Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
		task := dbtest.Create(t, db, cancelOrder, nil)
		mustRun(t, db, "UPDATE outbox_tasks SET run_at = 1.5")
		if _, err := p.RunDue(t.Context()); err != nil {
			t.Fatal(err)
		}
		var past struct{ Func, Reason string }
		if err := db.Raw("SELECT func, reason FROM outbox_history WHERE id = ?", task.ID).Scan(&past).Error; err != nil || past.Func != cancelOrder || past.Reason != "bad_args" {
			t.Errorf("history has %+v, %v", past, err)
		}
		if !strings.Contains(log.String(), "func="+cancelOrder) {
			t.Errorf("logged:\n%s", log.String())
		}
	})
}
