package admin_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/admin"
	"github.com/gorm-outbox/outbox/internal/dbtest"
)

func TestBulkReschedule(t *testing.T) {
	dbtest.EachInTurn(t, func(t *testing.T, db *gorm.DB) {
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
	if strings.HasSuffix(text, "LIMIT 100") && s.after.Add(-1) == 0 {
		<-ctx.Done()
	}
}

// TestBulkIsCutShort: what takes longer than its limit stops between two transactions, says so, and
// goes on when repeated.
func TestBulkIsCutShort(t *testing.T) {
	dbtest.EachInTurn(t, func(t *testing.T, db *gorm.DB) {
		slow := &stall{Interface: logger.Discard}
		db.Logger = slow
		var said strings.Builder
		d := open(t, db, admin.Options{})
		pages, err := admin.New(d.p, admin.Options{Authorize: everything, QueryTimeout: time.Minute, Logger: slogTo(&said)})
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

var (
	asOf  = regexp.MustCompile(`name="asof" value="([^"]+)"`)
	total = regexp.MustCompile(`name="count" value="([^"]+)"`)
	which = regexp.MustCompile(`name="shown" value="([^"]+)"`)
)

func TestBulk(t *testing.T) {
	dbtest.EachInTurn(t, func(t *testing.T, db *gorm.DB) {
		d := open(t, db, admin.Options{})
		t.Run("picked", func(t *testing.T) {
			a, b, c := d.failed(), d.failed(), d.failed()
			_, err := outbox.Rerun(db, b.ID)
			must(t, err)
			v := url.Values{"action": {"rerun"}, "filter": {"state=failed&func=mail.send"}, "reason": {"all of them"}, "count": {"3"}, "asof": {""},
				"pick": {a.ID + ".1", fmt.Sprintf("%s.%d", b.ID, b.Version), fmt.Sprintf("%s.%d", c.ID, c.Version), "nope.1"}}
			v["pick"][0] = fmt.Sprintf("%s.%d", a.ID, a.Version)
			w := d.post("tasks/bulk", v)
			status(t, w, 303)
			to := w.Header().Get("Location")
			has(t, to, "./../tasks?", "did=rerun", "n=2", "func=mail.send", "state=failed")
			has(t, status(t, d.get(strings.TrimPrefix(to, "./../")), 200), "2 tasks re-run", "left as they are", "1 changed", "1 gone")
			if rows := d.audit(); len(rows) != 2 || rows[1].Reason != "all of them" {
				t.Errorf("audit: %+v", rows)
			}
		})
		t.Run("what destroys asks first", func(t *testing.T) {
			bad := d.failed()
			v := url.Values{"action": {"discard"}, "filter": {"state=failed"}, "pick": {fmt.Sprintf("%s.%d", bad.ID, bad.Version)}, "reason": {`"><b>`}}
			text := status(t, d.post("tasks/bulk", v), 200)
			has(t, text, "Discard 1 task?", `name="confirmed" value="yes"`, bad.ID)
			hasNot(t, text, `"><b>`)
			d.past(bad.ID)
			v.Set("confirmed", "yes")
			status(t, d.post("tasks/bulk", v), 303)
			if _, _, err := outbox.Lookup(db, bad.ID); !errors.Is(err, outbox.ErrNotFound) {
				t.Error("it is still there")
			}
		})
		t.Run("all that were shown", func(t *testing.T) {
			must(t, db.Where("1 = 1").Delete(&outbox.HistoryModel{}).Error)
			must(t, db.Where("1 = 1").Delete(&outbox.TaskModel{}).Error)
			for range 230 { // more than two batches
				d.create(outbox.Queue("bulk"), outbox.StartAfter(time.Hour))
			}
			other := d.create(outbox.StartAfter(time.Hour))
			text := status(t, d.get("tasks?state=scheduled&queue=bulk"), 200)
			has(t, text, "All 230 that match")
			at, n := asOf.FindStringSubmatch(text), total.FindStringSubmatch(text)
			v := url.Values{"action": {"cancel"}, "filter": {"state=scheduled&queue=bulk"}, "all": {"1"}, "confirmed": {"yes"},
				"asof": {strings.ReplaceAll(at[1], "&#43;", "+")}, "count": {n[1]}}
			late := d.create(outbox.Queue("bulk"), outbox.StartAfter(time.Hour))
			has(t, status(t, d.post("tasks/bulk", v), 400), "needs shown")
			v.Set("action", "run_now")
			v.Set("count", "229")
			has(t, status(t, d.post("tasks/bulk", v), 409), "229 tasks were shown; 230 match now")
			v.Set("action", "cancel")
			v.Set("count", n[1])
			v.Set("shown", which.FindStringSubmatch(text)[1])
			w := d.post("tasks/bulk", v)
			status(t, w, 303)
			has(t, w.Header().Get("Location"), "n=230")
			d.task(other.ID)
			d.task(late.ID)
			if rows := d.audit(); len(rows) < 230 {
				t.Errorf("%d in the audit", len(rows))
			}
		})
		t.Run("bad", func(t *testing.T) {
			for _, v := range []url.Values{{}, {"action": {"reschedule"}, "pick": {"x.1"}}, {"action": {"burn"}}, {"action": {"rerun"}}, {"action": {"rerun"}, "pick": {"x"}},
				{"action": {"rerun"}, "pick": {"x.1"}, "filter": {"zap=1"}}, {"action": {"rerun"}, "all": {"1"}},
				{"action": {"rerun"}, "all": {"1"}, "asof": {"2026-01-01T00:00:00Z"}, "count": {"5"}, "filter": {"state=all"}}} {
				status(t, d.post("tasks/bulk", v), 400)
			}
		})
		t.Run("JSON", func(t *testing.T) {
			a, b := d.failed(), d.failed()
			text := status(t, d.postJSON("api/v1/tasks/bulk", fmt.Sprintf(`{"action":"discard","reason":"r","tasks":[{"id":%q,"version":%d},{"id":%q,"version":77}]}`,
				a.ID, a.Version, b.ID)), 200)
			has(t, text, `{"changed":1,"skipped":[{"id":"`+b.ID+`","reason":"changed"}]}`)
			text = status(t, d.postJSON("api/v1/tasks/bulk", fmt.Sprintf(`{"action":"rerun","filter":{"state":"failed"},"as_of":%q,"count":1}`,
				time.Now().Add(time.Minute).UTC().Format(time.RFC3339))), 200)
			has(t, text, `"changed":1`)
			for _, body := range []string{`{}`, `{"action":"rerun"}`, `{"action":"rerun","filter":{"state":"failed"}}`,
				`{"action":"reschedule","tasks":[{"id":"x","version":1}]}`,
				`{"action":"cancel","at":"2099-01-01","tasks":[{"id":"x","version":1}]}`, `{"action":"rerun","filter":{"x":"failed"},"as_of":"2026-01-01T00:00:00Z","count":1}`} {
				status(t, d.postJSON("api/v1/tasks/bulk", body), 400)
			}
		})
	})
}

// TestBulkStopsHalfWay breaks off a change of many tasks when its second hundred has been read:
// what was done is reported, and doing it again does the rest.
func TestBulkStopsHalfWay(t *testing.T) {
	dbtest.EachInTurn(t, func(t *testing.T, db *gorm.DB) {
		ctx, stop := context.WithCancel(t.Context())
		reads := 0
		db.Logger = stopper{db.Logger, func(text string) {
			if strings.HasSuffix(text, "LIMIT 100") {
				if reads++; reads == 2 {
					stop()
				}
			}
		}}
		d := open(t, db, admin.Options{})
		for range 150 {
			d.create(outbox.StartAfter(time.Hour))
		}
		ask := func(ctx context.Context, count int) map[string]any {
			body := fmt.Sprintf(`{"action":"run_now","filter":{"state":"scheduled"},"as_of":%q,"count":%d}`, time.Now().Add(time.Minute).Format(time.RFC3339), count)
			r := httptest.NewRequestWithContext(ctx, "POST", "/ops/outbox/api/v1/tasks/bulk", strings.NewReader(body))
			r.Header.Set("Content-Type", "application/json")
			w := httptest.NewRecorder()
			d.h.ServeHTTP(w, r)
			return decode[map[string]any](t, status(t, w, 200))
		}
		if got := ask(ctx, 150); got["changed"] != 100.0 || got["more"] != true {
			t.Errorf("the first says %v", got)
		}
		if n := len(d.audit()); n != 100 {
			t.Errorf("%d rows of audit", n)
		}
		if got := ask(t.Context(), 150); got["changed"] != 50.0 || got["more"] != nil {
			t.Errorf("the second says %v", got)
		}
	})
}

// stopper tells of each statement of GORM's.
type stopper struct {
	logger.Interface
	heard func(string)
}

func (s stopper) Trace(_ context.Context, _ time.Time, fc func() (string, int64), _ error) {
	text, _ := fc()
	s.heard(text)
}
