package admin_test

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/admin"
	"github.com/gorm-outbox/outbox/internal/dbtest"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

var allPages = []string{"", "tasks", "tasks?state=failed", "functions", "processes", "audit", "api/v1/overview", "api/v1/tasks",
	"api/v1/functions", "api/v1/processes", "api/v1/audit", "export?format=csv", "export?format=ndjson"}

func TestNew(t *testing.T) {
	p := outbox.New(outbox.Options{})
	if _, err := admin.New(p, admin.Options{}); err == nil || !strings.Contains(err.Error(), "Authorize") {
		t.Errorf("without Authorize: %v", err)
	}
	if _, err := admin.New(p, admin.Options{Authorize: everything}); !errors.Is(err, outbox.ErrNotInstalled) {
		t.Errorf("before db.Use: %v", err)
	}
	if err := testdb.SQLite(t).Use(p); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.New(p, admin.Options{Authorize: everything, TrustedOrigins: []string{"no origin"}}); err == nil {
		t.Error("a bad origin is taken")
	}
	if _, err := admin.New(nil, admin.Options{Authorize: everything}); err == nil {
		t.Error("a nil plugin is taken")
	}
}

func TestPages(t *testing.T) {
	dbtest.EachInTurn(t, func(t *testing.T, db *gorm.DB) {
		d := open(t, db, admin.Options{Title: "Shop tasks"})
		t.Run("empty", func(t *testing.T) {
			for _, page := range allPages {
				status(t, d.get(page), 200)
			}
			has(t, status(t, d.get(""), 200), "No tasks yet", "No process dispatches", "Shop tasks", "alice")
		})
		bad := d.failed(outbox.Key("k-1"))
		later := d.create(outbox.StartAfter(time.Hour))
		due := d.create()
		gone := d.create(outbox.StartAfter(time.Hour))
		if err := outbox.Cancel(db, gone.ID); err != nil {
			t.Fatal(err)
		}
		running := d.create()
		must(t, db.Model(running).Updates(map[string]any{"state": "running", "process_id": "p-1", "started_at": running.CreatedAt}).Error)
		parked := d.create()
		must(t, db.Model(parked).Updates(map[string]any{"state": "parked"}).Error)
		d = open2(t, d) // fresh figures

		t.Run("overview", func(t *testing.T) {
			has(t, status(t, d.get(""), 200), "Needs attention", "dial tcp: timeout", "parked: no live process", "oldest waits", "next in 59 min", `aria-current="page"`)
			hasNot(t, status(t, d.get(""), 200), "second line")
		})
		ids := map[string]string{"failed": bad.ID, "scheduled": later.ID, "pending": due.ID, "cancelled": gone.ID, "running": running.ID, "parked": parked.ID}
		t.Run("each state lists its own", func(t *testing.T) {
			for state := range ids {
				text := status(t, d.get("tasks?state="+state), 200)
				for other, id := range ids {
					if strings.Contains(text, id) != (other == state) {
						t.Errorf("%s lists a %s task: %v", state, other, other != state)
					}
				}
				hasNot(t, status(t, d.get("tasks?state=done"), 200), ids[state])
			}
			text := status(t, d.get("tasks"), 200)
			for _, id := range ids {
				has(t, text, id)
			}
		})
		t.Run("detail", func(t *testing.T) {
			for state, id := range ids {
				text := status(t, d.get("tasks/"+id), 200)
				has(t, text, id, "ann@example.com", "Timeline")
				for action, in := range map[string]string{"/rerun": "failed cancelled", "/discard": "failed", "/run_now": "scheduled parked",
					"/reschedule": "scheduled pending parked", "/cancel": "scheduled pending parked"} {
					if strings.Contains(text, id+action) != strings.Contains(in, state) {
						t.Errorf("%s: %s is wrong", state, action)
					}
				}
			}
			has(t, status(t, d.get("tasks/"+bad.ID), 200), "second line", "attempt 1 of 1", "k-1")
		})
		t.Run("filters", func(t *testing.T) {
			now := time.Now().UTC()
			for query, found := range map[string]bool{
				"func=mail.send": true, "func=mail": false, "key=k-1": true, "key=k": false, "id=" + bad.ID: true, "id=x": false,
				"queue=default": true, "queue=other": false, "args=ANN@": true, "args=bob": false, "args=a_n": false, "args=%25nn": false,
				"error=DIAL": true, "error=second": true, "error=third": false,
				"from=" + url.QueryEscape(now.Add(-time.Hour).Format(time.RFC3339)): true,
				"from=" + url.QueryEscape(now.Add(time.Hour).Format(time.RFC3339)):  false,
				"to=" + now.Add(-time.Hour).Format("2006-01-02T15:04"):              false,
				"to=" + now.Add(time.Hour).Format("2006-01-02T15:04"):               true,
			} {
				for _, state := range []string{"failed", "all"} {
					w := d.get("tasks?state=" + state + "&" + query)
					if strings.Contains(status(t, w, 200), `id="t-`+bad.ID) != found {
						t.Errorf("%s, %s: want found %v", state, query, found)
					}
				}
			}
		})
		t.Run("times in fields", func(t *testing.T) {
			for query, value := range map[string]string{"2026-01-31T15:04": "2026-01-31T15:04", "2026-01-31T15:04:05": "2026-01-31T15:04:05",
				"2026-01-31T15:04:05.678": "2026-01-31T15:04:05.678", "2026-01-31T15:04:05%2B01:00": "2026-01-31T14:04:05"} {
				text := status(t, d.get("tasks?from="+query), 200)
				has(t, text, `name="from" value="`+value+`"`)
				if again := status(t, d.get("tasks?from="+value), 200); !strings.Contains(again, `name="from" value="`+value+`"`) {
					t.Errorf("%s is not taken back", value)
				}
			}
		})
		t.Run("what is not there", func(t *testing.T) {
			has(t, status(t, d.get("tasks/nope"), 404), "7 days", "90 days")
			has(t, status(t, d.get("api/v1/tasks/nope"), 404), `"status":404`, "90 days")
			for _, page := range []string{"nope", "api", "api/v2/tasks", "api/v1/nope", "assets/nope", "tasks/a/b", "tasks/", "assets/../x", "tasks/" + strings.Repeat("x", 2000)} {
				if w := d.get(page); w.Code == 200 || w.Code >= 500 {
					t.Errorf("%s: status %d", page, w.Code)
				}
			}
		})
		t.Run("what is not known", func(t *testing.T) {
			// No database stores a year before the first.
			ancient := base64.RawURLEncoding.EncodeToString([]byte("a" + strconv.FormatInt(time.Date(0, 6, 1, 0, 0, 0, 0, time.UTC).UnixMicro(), 10) + "|x"))
			for query, says := range map[string]string{"sate=failed": "state, func", "state=bad": "parked", "limit=0": "200", "limit=x": "200",
				"cursor=!": "cursor", "cursor=" + ancient: "cursor", "from=0001-01-01T00:00:00%2B14:00": "UTC",
				"state=failed;limit=1": "cannot be read", "state=%zz": "cannot be read", "from=yesterday": "UTC", "state=failed&state=done": "twice", "func=" + strings.Repeat("x", 256): "255", "key=%00": "text"} {
				has(t, status(t, d.get("tasks?"+query), 400), says)
				w := d.get("api/v1/tasks?" + query)
				has(t, status(t, w, 400), says, `"type":"about:blank"`)
				if kind := w.Header().Get("Content-Type"); kind != "application/problem+json" {
					t.Errorf("an error is %s", kind)
				}
			}
			for _, asOf := range []string{"0000-06-01T00:00:00Z", "0001-01-01T00:00:00+14:00"} {
				has(t, status(t, d.post("tasks/bulk", url.Values{"action": {"rerun"}, "all": {"1"}, "filter": {"state=failed"}, "asof": {asOf}, "count": {"9"}}), 400), "asof")
				has(t, status(t, d.postJSON("api/v1/tasks/bulk", `{"action":"rerun","filter":{"state":"failed"},"as_of":"`+asOf+`","count":9}`), 400), "as_of")
			}
			for _, body := range []string{`{"version":1}}`, `{"version":1}]`, `{"version":1} x`} {
				has(t, status(t, d.postJSON("api/v1/tasks/"+bad.ID+"/rerun", body), 400), "more than one")
			}
			status(t, d.get("?range=1y"), 400)
			status(t, d.get("audit?action=burn"), 400)
			status(t, d.get("export?format=xls"), 400)
			status(t, d.send("PUT", "tasks", "", ""), 405)
			status(t, d.get("tasks/"+bad.ID+"/rerun"), 405)
		})
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// open2 makes the pages anew, without what they remember.
func open2(t *testing.T, d *desk) *desk {
	t.Helper()
	pages, err := admin.New(d.p, admin.Options{Authorize: everything, QueryTimeout: time.Minute})
	must(t, err)
	again := *d
	again.t, again.h = t, http.StripPrefix("/ops/outbox", pages)
	return &again
}

func TestPaging(t *testing.T) {
	dbtest.EachInTurn(t, func(t *testing.T, db *gorm.DB) {
		d := open(t, db, admin.Options{})
		same := time.Now().Add(time.Hour)
		for i := range 23 {
			opts := []outbox.CreateOption{outbox.StartAt(same.Add(time.Duration(i/5) * time.Minute)), outbox.Priority(1 + i%3)}
			if i%4 == 0 {
				opts = append(opts, outbox.Queue("mail"))
			}
			d.create(opts...)
		}
		for range 11 {
			d.create(outbox.Key(fmt.Sprint("k", time.Now().UnixNano())))
		}
		if _, err := d.p.RunDue(t.Context()); err != nil {
			t.Fatal(err)
		}
		row := regexp.MustCompile(`id="t-([^"]+)"`)
		link := regexp.MustCompile(`href="([^"]+)">(?:Older|Later) →|href="([^"]+)">← `)
		for state, want := range map[string]int{"scheduled": 23, "done": 11, "all": 34} {
			seen := map[string]bool{}
			var pages [][]string
			path := "tasks?limit=4&state=" + state
			var last string
			for n := 0; path != "" && n < 20; n++ {
				last = status(t, d.get(path), 200)
				var ids []string
				for _, m := range row.FindAllStringSubmatch(last, -1) {
					if seen[m[1]] {
						t.Errorf("%s: %s is listed twice", state, m[1])
					}
					seen[m[1]] = true
					ids = append(ids, m[1])
				}
				pages = append(pages, ids)
				path = follow(link, last, true)
			}
			if len(seen) != want {
				t.Errorf("%s: %d are listed, want %d", state, len(seen), want)
			}
			for n := len(pages) - 2; n >= 0; n-- {
				back := follow(link, last, false)
				if back == "" {
					t.Fatalf("%s: no way back from page %d", state, n+1)
				}
				last = status(t, d.get(back), 200)
				var ids []string
				for _, m := range row.FindAllStringSubmatch(last, -1) {
					ids = append(ids, m[1])
				}
				if fmt.Sprint(ids) != fmt.Sprint(pages[n]) {
					t.Errorf("%s: page %d backwards is %v, forwards %v", state, n, ids, pages[n])
				}
			}
			if back := follow(link, last, false); back != "" {
				t.Errorf("%s: something is newer than the first page: %s", state, back)
			}
		}
	})
}

func follow(link *regexp.Regexp, text string, older bool) string {
	for _, m := range link.FindAllStringSubmatch(text, -1) {
		target := m[1]
		if !older {
			target = m[2]
		}
		if target != "" {
			return strings.ReplaceAll(strings.TrimPrefix(target, "./"), "&amp;", "&")
		}
	}
	return ""
}

func TestDatabaseIsAway(t *testing.T) {
	dbtest.EachInTurn(t, func(t *testing.T, db *gorm.DB) {
		d := open(t, db, admin.Options{})
		must(t, db.Migrator().DropTable("outbox_tasks"))
		for _, page := range []string{"", "tasks", "functions", "api/v1/tasks"} {
			text := status(t, d.get(page), http.StatusServiceUnavailable)
			has(t, text, "Migrate")
			hasNot(t, text, "outbox_tasks", "SQL")
		}
	})
}

// TestExportOfLargeArguments: a list leaves large arguments out, an export does not.
func TestExportOfLargeArguments(t *testing.T) {
	dbtest.EachInTurn(t, func(t *testing.T, db *gorm.DB) {
		d := open(t, db, admin.Options{})
		large := strings.Repeat("x", 10_000) + "@example.com"
		task, err := outbox.Create(db, "mail.send", mail{To: large}, outbox.StartAfter(time.Hour))
		must(t, err)
		hasNot(t, status(t, d.get("tasks"), 200), large)
		for _, format := range []string{"csv", "ndjson"} {
			has(t, status(t, d.get("export?format="+format), 200), task.ID, large)
		}
	})
}

// TestStaleFigures: who has the overview open sees the last figures, and of when they are, also
// right after a change.
func TestStaleFigures(t *testing.T) {
	dbtest.EachInTurn(t, func(t *testing.T, db *gorm.DB) {
		d := open(t, db, admin.Options{})
		bad := d.failed()
		hasNot(t, status(t, d.get(""), 200), "does not answer")
		status(t, d.post("tasks/"+bad.ID+"/rerun", form(bad.Version)), 303) // the next page asks again
		must(t, db.Migrator().DropTable("outbox_tasks"))
		has(t, status(t, d.get(""), 200), "These are the figures of", "1 in 24 h")
	})
}

func TestSlowDatabaseIsSaid(t *testing.T) {
	dbtest.EachInTurn(t, func(t *testing.T, db *gorm.DB) {
		d := open(t, db, admin.Options{QueryTimeout: time.Nanosecond})
		w := d.get("tasks")
		has(t, status(t, w, http.StatusServiceUnavailable), "took longer than 1ns", "Narrow")
		if w.Header().Get("Retry-After") == "" {
			t.Error("it does not say when to try again")
		}
		// A statement that is under way is broken off, whatever the driver calls that.
		fill(t, db, "100000")
		pages, err := admin.New(d.p, admin.Options{Authorize: everything, QueryTimeout: 20 * time.Millisecond})
		must(t, err)
		d.h = http.StripPrefix("/ops/outbox", pages)
		has(t, status(t, d.get("tasks?error=nothing-has-it"), http.StatusServiceUnavailable), "took longer than 20ms", "Narrow")
	})
}

func TestMountedWithoutSlash(t *testing.T) {
	d := open(t, testdb.SQLite(t), admin.Options{})
	pages, err := admin.New(d.p, admin.Options{Authorize: everything})
	must(t, err)
	w := httptest.NewRecorder()
	http.StripPrefix("/a/admin", pages).ServeHTTP(w, httptest.NewRequest("GET", "/a/admin?x=1", nil))
	if w.Code != 301 || w.Header().Get("Location") != "./admin/" {
		t.Errorf("got %d, %s", w.Code, w.Header().Get("Location"))
	}
	for path, up := range map[string]string{"/tasks": `href="./tasks"`, "/tasks/nope": `href="./../tasks"`, "/tasks/a/b": `href="./../../tasks"`} {
		w := httptest.NewRecorder()
		pages.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		has(t, w.Body.String(), up)
	}
}

func TestNotModified(t *testing.T) {
	d := open(t, testdb.SQLite(t), admin.Options{})
	for _, page := range []string{"tasks?state=failed", "audit", "processes", "api/v1/tasks"} {
		first := d.get(page)
		status(t, first, 200)
		tag := first.Header().Get("ETag")
		again := d.send("GET", page, "", "", "If-None-Match", `"other", `+tag)
		if text := status(t, again, 304); tag == "" || text != "" {
			t.Errorf("%s: tag %q, text %q", page, tag, text)
		}
		status(t, d.send("GET", page, "", "", "If-None-Match", `"other"`), 200)
	}
	tag := d.get("tasks?state=failed").Header().Get("ETag")
	d.failed()
	status(t, d.send("GET", "tasks?state=failed", "", "", "If-None-Match", tag), 200)
	if tag := d.get("tasks/nope").Header().Get("ETag"); tag != "" {
		t.Errorf("an error has the tag %s", tag)
	}
}

func TestTrend(t *testing.T) {
	d := open(t, testdb.SQLite(t), admin.Options{})
	for i := range 32 { // the last half takes a second, the first ten milliseconds
		took := "0.010"
		if i >= 16 {
			took = "1.000"
		}
		task := d.create()
		_, err := d.p.RunDue(t.Context())
		must(t, err)
		must(t, d.db.Exec(`UPDATE outbox_history SET started_at = strftime('%Y-%m-%d %H:%M:%f', finished_at, ?) || '000+00:00' WHERE id = ?`, "-"+took+" seconds", task.ID).Error)
	}
	type answer struct {
		Data []struct {
			Pace  string          `json:"pace"`
			Trend []time.Duration `json:"trend_ns"`
		} `json:"data"`
	}
	got := decode[answer](t, status(t, d.get("api/v1/functions"), 200)).Data
	if len(got) != 1 || got[0].Pace != "slower" || len(got[0].Trend) != 8 || got[0].Trend[0] >= got[0].Trend[7] {
		t.Errorf("got %+v", got)
	}
	has(t, status(t, d.get(""), 200), "</svg> slower", `id="funcs"`)
	has(t, status(t, d.get("functions"), 200), "</svg> slower")
}
