package admin_test

import (
	"net/http"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/admin"
	"github.com/gorm-outbox/outbox/internal/dbtest"
)

// TestNoticesAreTrue: what a URL says was done is shown to whom the audit knows to have just done
// it.
func TestNoticesAreTrue(t *testing.T) {
	dbtest.EachInTurn(t, func(t *testing.T, db *gorm.DB) {
		user := "alice"
		d := open(t, db, admin.Options{Authorize: func(*http.Request, admin.Action) (admin.Actor, error) { return admin.Actor{Name: user}, nil }})
		for range 2 {
			status(t, d.post("tasks/"+d.create(outbox.StartAfter(time.Hour)).ID+"/cancel", form(1)), 303)
		}
		const notice = `class="notice"`
		has(t, status(t, d.get("tasks?did=cancel&n=2&skipped=gone.1"), 200), notice, "2 tasks cancelled")
		for _, claim := range []string{"tasks?did=cancel&n=3", "tasks?did=cancel&n=10000", "tasks?did=discard&n=1"} {
			hasNot(t, status(t, d.get(claim), 200), notice)
		}
		user = "bob"
		hasNot(t, status(t, d.get("tasks?did=cancel&n=2"), 200), notice)
		user = "alice"
		must(t, db.Model(&outbox.AuditModel{}).Where("1 = 1").Update("at", time.Now().Add(-time.Hour)).Error)
		hasNot(t, status(t, d.get("tasks?did=cancel&n=2"), 200), notice)
	})
}
