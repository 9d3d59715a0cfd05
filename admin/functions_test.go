package admin_test

import (
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/admin"
	"github.com/gorm-outbox/outbox/internal/dbtest"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

type functionJSON struct {
	Path                             string
	Waiting, Running, Parked, Failed int
}

func (d *desk) functions() map[string]functionJSON {
	d.t.Helper()
	list := decode[struct{ Data []functionJSON }](d.t, status(d.t, d.get("api/v1/functions"), 200))
	found := map[string]functionJSON{}
	for _, f := range list.Data {
		found[f.Path] = f
	}
	return found
}

// TestFunctionsBesideABacklog: many tasks of one function hide neither what runs nor what is parked
// of another.
func TestFunctionsBesideABacklog(t *testing.T) {
	dbtest.EachInTurn(t, func(t *testing.T, db *gorm.DB) {
		d := open(t, db, admin.Options{})
		fill(t, db, "48000")
		must(t, db.Model(&outbox.TaskModel{}).Where("priority = 1").Updates(map[string]any{"state": "parked", "func": "m.many"}).Error)
		for path, set := range map[string]map[string]any{"a.few": {"state": "parked"}, "z.few": {"state": "parked"},
			"z.runs": {"state": "running", "process_id": "p-1"}, "z.waits": {"queue": "zz"}} {
			set["func"] = path
			for range 2 {
				must(t, db.Model(d.create()).Updates(set).Error)
			}
		}
		got := d.functions()
		for path, want := range map[string]functionJSON{"a.few": {Parked: 2}, "z.few": {Parked: 2}, "m.many": {Parked: 10_001}, "z.runs": {Running: 2}, "z.waits": {Waiting: 2}} {
			if want.Path = path; got[path] != want {
				t.Errorf("got %+v, want %+v", got[path], want)
			}
		}
		if n := got["mail.send"].Waiting; n < 5000 || n > 10_000 {
			t.Errorf("%d wait in the sample", n)
		}
		has(t, status(t, d.get(""), 200), "z.few</bdi></a> parked", "10,000&#43;×</b> <bdi>m.many")
		has(t, status(t, d.get("functions"), 200), "func=m.many\">10,000&#43;</a>")
	})
}

// TestFailedOfAFunction is what the linked list shows: what nobody has re-run.
func TestFailedOfAFunction(t *testing.T) {
	dbtest.EachInTurn(t, func(t *testing.T, db *gorm.DB) {
		d := open(t, db, admin.Options{})
		d.failed()
		bad := d.failed()
		_, err := outbox.Rerun(db, bad.ID, outbox.StartAfter(time.Hour))
		must(t, err)
		if got := d.functions()["mail.send"]; got.Failed != 1 {
			t.Errorf("%d failed, want 1", got.Failed)
		}
		for _, page := range []string{"", "functions"} {
			has(t, status(t, d.get(page), 200), `state=failed&amp;func=mail.send">1</a>`)
		}
	})
}

// TestFunctionsLinkWhereAnIndexServes: the names of functions lead to lists that do not walk a
// table.
func TestFunctionsLinkWhereAnIndexServes(t *testing.T) {
	d := open(t, testdb.SQLite(t), admin.Options{})
	d.failed()
	must(t, d.db.Create(&outbox.ProcessModel{ID: "p-1", Host: "h", Functions: outbox.JSON(`["mail.send"]`), StartedAt: time.Now(), BeatAt: time.Now()}).Error)
	for _, page := range []string{"", "functions", "processes"} {
		text := status(t, d.get(page), 200)
		has(t, text, `tasks?state=failed&amp;func=mail.send"><bdi>mail.send`)
		hasNot(t, text, "tasks?func=")
	}
}
