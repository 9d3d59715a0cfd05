package admin_test

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/admin"
)

func TestBulkReschedule(t *testing.T) {
	eachDB(t, func(t *testing.T, db *gorm.DB) {
		d := open(t, db, admin.Options{})
		to := time.Date(2099, 1, 2, 3, 4, 0, 0, time.UTC)
		t.Run("picked", func(t *testing.T) {
			a, due := d.create(outbox.StartAfter(time.Hour)), d.create()
			w := d.post("tasks/bulk", url.Values{"action": {"reschedule"}, "filter": {"state=scheduled"}, "at": {"2099-01-02T03:04"},
				"reason": {"quiet day"}, "pick": {a.ID + ".1", due.ID + ".1", a.ID + ".7"}})
			status(t, w, 303)
			has(t, w.Header().Get("Location"), "did=reschedule", "n=2", "skipped=changed.1")
			for _, id := range []string{a.ID, due.ID} {
				if task := d.task(id); !task.RunAt.Equal(to) || task.Version != 2 {
					t.Errorf("starts at %s, version %d", task.RunAt, task.Version)
				}
			}
			if rows := d.audit(); len(rows) != 2 || rows[1].Reason != "quiet day" || rows[1].Action != "reschedule" ||
				!strings.Contains(rows[1].After.String(), "2099-01-02T03:04:00Z") {
				t.Errorf("audit: %+v", rows)
			}
		})
		t.Run("all that match, each once", func(t *testing.T) { // though the walk meets them again at their new place
			var ids []string
			for range 230 {
				ids = append(ids, d.create(outbox.Queue("bulk"), outbox.StartAfter(time.Hour)).ID)
			}
			body := fmt.Sprintf(`{"action":"reschedule","at":"2099-01-02T03:04:00Z","filter":{"state":"scheduled","queue":"bulk"},"as_of":%q,"count":230}`,
				time.Now().Add(time.Minute).UTC().Format(time.RFC3339))
			for _, changed := range []string{"230", "0"} {
				has(t, status(t, d.postJSON("api/v1/tasks/bulk", body), 200), `{"changed":`+changed+`,"skipped":[]}`)
			}
			for _, id := range ids {
				if task := d.task(id); !task.RunAt.Equal(to) || task.Version != 2 {
					t.Fatalf("starts at %s, version %d", task.RunAt, task.Version)
				}
			}
		})
	})
}

// stall keeps a list read from coming back before its context ends, once so many have.
type stall struct {
	logger.Interface
	after atomic.Int32
}

func (s *stall) Trace(ctx context.Context, _ time.Time, fc func() (string, int64), _ error) {
	text, _ := fc()
	if strings.Contains(text, "LIMIT 101") && s.after.Add(-1) == 0 {
		<-ctx.Done()
	}
}

// TestBulkIsCutShort: what takes longer than its limit stops between two transactions, says so, and goes on when repeated.
func TestBulkIsCutShort(t *testing.T) {
	eachDB(t, func(t *testing.T, db *gorm.DB) {
		slow := &stall{Interface: logger.Discard}
		db.Logger = slow
		var said strings.Builder
		d := open(t, db, admin.Options{})
		pages, err := admin.New(d.p, admin.Options{Authorize: everything, Logger: slogTo(&said)})
		must(t, err)
		admin.LimitBulk(pages, 5*time.Second)
		d.h = http.StripPrefix("/ops/outbox", pages)
		for range 250 {
			d.create(outbox.StartAfter(time.Hour))
		}
		v := url.Values{"action": {"run_now"}, "filter": {"state=scheduled"}, "all": {"1"}, "count": {"250"},
			"asof": {time.Now().Add(time.Minute).UTC().Format(time.RFC3339)}}
		slow.after.Store(2)
		w := d.post("tasks/bulk", v)
		status(t, w, 303)
		has(t, w.Header().Get("Location"), "n=100", "more.1")
		text := status(t, d.get(strings.TrimPrefix(w.Header().Get("Location"), "./../")), 200)
		has(t, text, "100 tasks made due", "Not all was done in one go: look again and repeat.", `name="count" value="150"`)
		has(t, said.String(), "half-way", "changed=100", "err=")
		if n := len(d.audit()); n != 100 {
			t.Errorf("%d in the audit", n)
		}
		v.Set("count", "150")
		w = d.post("tasks/bulk", v)
		status(t, w, 303)
		has(t, w.Header().Get("Location"), "n=150")
		hasNot(t, w.Header().Get("Location"), "more")
	})
}
