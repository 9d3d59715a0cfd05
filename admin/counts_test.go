package admin_test

import (
	"fmt"
	"html"
	"regexp"
	"testing"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox/admin"
	"github.com/gorm-outbox/outbox/internal/dbtest"
)

// The failed and the handled are counted together, up to a limit: beyond it the rarer of them must
// not be lost.
func TestCountsOfFailures(t *testing.T) {
	dbtest.EachInTurn(t, func(t *testing.T, db *gorm.DB) {
		d := open(t, db, admin.Options{})
		fill(t, db, "20100")
		for _, c := range []struct{ name, failed, rerun, wantFailed, wantHandled string }{
			{"few", "id LIKE '%00'", "id LIKE '%000'", "181", "20"},
			{"none", "1 = 0", "1 = 1", "0", "0"},
			{"many, few of them handled", "1 = 1", "id LIKE '%000'", "10,000+", "20"},
			{"many, few of them left", "1 = 1", "id NOT LIKE '%000'", "20", "10,000+"},
			{"many of both", "1 = 1", "id LIKE '%0' OR id LIKE '%2' OR id LIKE '%4' OR id LIKE '%6' OR id LIKE '%8'", "10,000+", "10,000+"},
			{"all that are read", "id > 'h-999979999'", "id LIKE '%00'", "10,000+", "200"},
		} {
			t.Run(c.name, func(t *testing.T) {
				must(t, db.Exec("UPDATE outbox_history SET status = CASE WHEN "+c.failed+" THEN 'error' ELSE 'success' END, rerun_id = CASE WHEN "+c.rerun+" THEN 'x' END").Error)
				page := status(t, open2(t, d).get("tasks"), 200)
				for state, want := range map[string]string{"failed": c.wantFailed, "handled": c.wantHandled} {
					found := regexp.MustCompile(fmt.Sprintf(`href="[^"]*state=%s".*?<span class="n">([^<]*)</span>`, state)).FindStringSubmatch(page)
					if found == nil || html.UnescapeString(found[1]) != want {
						t.Errorf("%s: %v, want %s", state, found, want)
					}
				}
			})
		}
	})
}
