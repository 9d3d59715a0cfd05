package admin_test

import (
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/admin"
	"github.com/gorm-outbox/outbox/internal/dbtest"
)

// TestWhatFailsAsideIsLogged: a page that can do without a figure is shown, and says what it lacks;
// the log says why.
func TestWhatFailsAsideIsLogged(t *testing.T) {
	dbtest.EachInTurn(t, func(t *testing.T, db *gorm.DB) {
		d := open(t, db, admin.Options{})
		var said strings.Builder
		pages, err := admin.New(d.p, admin.Options{Authorize: everything, QueryTimeout: time.Minute, Logger: slogTo(&said)})
		must(t, err)
		d.h = http.StripPrefix("/ops/outbox", pages)
		bad := d.failed()
		status(t, d.get(""), 200)
		status(t, d.post("tasks/"+bad.ID+"/rerun", form(bad.Version)), 303) // the next page asks again
		must(t, db.Migrator().DropTable(&outbox.TaskModel{}))
		has(t, status(t, d.get(""), 200), "tables are missing", "These are the figures of")
		has(t, said.String(), "level=ERROR", "status=503")
		said.Reset()
		hasNot(t, status(t, d.get("tasks?state=done"), 200), `class="n"`) // whose counts are of every state
		has(t, said.String(), "level=ERROR", "page=tasks")
	})
}

var pageTime = regexp.MustCompile(`this page is of <time datetime="([^"]+)">`)

// TestPagesHaveTheDatabasesTime: all that a page says of time is by one clock, and that is the
// database's.
func TestPagesHaveTheDatabasesTime(t *testing.T) {
	dbtest.EachInTurn(t, func(t *testing.T, db *gorm.DB) {
		d := open(t, db, admin.Options{})
		bad := d.failed()
		text := status(t, d.get("tasks?state=failed"), 200)
		shown, err := time.Parse(time.RFC3339Nano, pageTime.FindStringSubmatch(text)[1])
		must(t, err)
		read, err := time.Parse(time.RFC3339Nano, strings.ReplaceAll(asOf.FindStringSubmatch(text)[1], "&#43;", "+"))
		must(t, err)
		if !shown.Equal(read) {
			t.Errorf("the page is of %s, its list of %s", shown, read)
		}
		for _, page := range []string{"", "functions", "processes", "audit", "tasks/" + bad.ID} {
			shown, err := time.Parse(time.RFC3339Nano, pageTime.FindStringSubmatch(status(t, d.get(page), 200))[1])
			if must(t, err); !shown.Equal(shown.Truncate(time.Microsecond)) { // databases have no more
				t.Errorf("%q is of %s", page, shown)
			}
		}
	})
}
