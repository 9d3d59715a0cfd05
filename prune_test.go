package outbox_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
)

func TestPruneDeletesWhatIsOldOnly(t *testing.T) {
	for _, tt := range []struct {
		errors bool
		limit  int
		left   []string
	}{
		{false, 100, []string{"cancelled new", "error new", "error old", "success new"}},
		{true, 100, []string{"cancelled new", "cancelled old", "error new", "success new", "success old"}},
		{false, 1, []string{"cancelled new", "cancelled old", "error new", "error old", "success new"}}, // one status after the other
	} {
		t.Run(fmt.Sprintf("errors %v, %d", tt.errors, tt.limit), func(t *testing.T) {
			dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
				d, pool := dbtest.Install(t, db, outbox.Options{}, nil).Statements()
				for i, status := range []outbox.Status{outbox.StatusSuccess, outbox.StatusError, outbox.StatusCancelled} {
					for name, age := range map[string]time.Duration{"new": 55 * time.Minute, "old": 65 * time.Minute} {
						m := outbox.HistoryModel{ID: string(status) + " " + name, Func: "f", Args: outbox.JSON("{}"), Queue: "default",
							Status: status, RunAt: fenceNow, CreatedAt: fenceNow, FinishedAt: time.Now().Add(-age - time.Duration(i)*time.Minute).UTC()}
						if err := db.Create(&m).Error; err != nil {
							t.Fatal(err)
						}
					}
				}
				if _, err := d.Prune(t.Context(), pool, tt.errors, time.Hour, tt.limit); err != nil {
					t.Fatal(err)
				}
				var left []string
				if err := db.Model(&outbox.HistoryModel{}).Order("id").Pluck("id", &left).Error; err != nil || !slices.Equal(left, tt.left) {
					t.Errorf("%v: left %q, want %q", err, left, tt.left)
				}
			})
		})
	}
}
