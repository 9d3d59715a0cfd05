package admin_test

import (
	"encoding/csv"
	"encoding/json"
	"html"
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

// Headers of a page, whatever its status: changing one is a decision.
const goldenHeaders = `Cache-Control: no-store
Content-Security-Policy: default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'; require-trusted-types-for 'script'; trusted-types 'none'
Cross-Origin-Opener-Policy: same-origin
Cross-Origin-Resource-Policy: same-origin
Permissions-Policy: camera=(), geolocation=(), microphone=()
Referrer-Policy: same-origin
X-Content-Type-Options: nosniff
X-Frame-Options: DENY
`

func TestHeaders(t *testing.T) {
	d := open(t, testdb.SQLite(t), admin.Options{})
	task, bad := d.create(outbox.StartAfter(time.Hour)), d.failed()
	const form, document = "application/x-www-form-urlencoded", "application/json"
	tag := d.get("tasks?state=done").Header().Get("ETag")
	for page, answer := range map[string]struct {
		w    *httptest.ResponseRecorder
		want int
	}{
		"overview": {d.get(""), 200}, "tasks": {d.get("tasks"), 200}, "JSON": {d.get("api/v1/tasks"), 200}, "export": {d.get("export?format=csv"), 200},
		"no task": {d.get("tasks/nope"), 404}, "no resource": {d.get("api/v1/x"), 404}, "no asset": {d.get("assets/x"), 404}, "odd": {d.get("tasks?x=1"), 400},
		"not modified":  {d.send("GET", "tasks?state=done", "", "", "If-None-Match", tag), 304},
		"method":        {d.send("PUT", "tasks", "", ""), 405},
		"type":          {d.send("POST", "tasks/"+task.ID+"/cancel", "text/plain", "version=1"), 415},
		"conflict":      {d.send("POST", "tasks/"+task.ID+"/cancel", form, "version=9"), 409},
		"JSON conflict": {d.send("POST", "api/v1/tasks/"+task.ID+"/cancel", document, `{"version":9}`), 409},
		"too large":     {d.send("POST", "tasks/"+task.ID+"/cancel", form, strings.Repeat("x", 1<<20+1)), 413},
		"cross-site":    {d.send("POST", "tasks/"+task.ID+"/cancel", form, "version=1", "Sec-Fetch-Site", "cross-site"), 403},
		"refused":       {d.send("POST", "tasks/"+bad.ID+"/rerun", form, "version="+strconv.FormatInt(bad.Version, 10)+"&args={"), 422},
		"confirm":       {d.send("POST", "tasks/bulk", form, "action=cancel&pick="+task.ID+".1"), 200},
		"redirect":      {d.send("POST", "tasks/"+task.ID+"/cancel", form, "version=1"), 303},
	} {
		w := answer.w
		status(t, w, answer.want)
		var got strings.Builder
		for _, line := range strings.Split(strings.TrimSpace(goldenHeaders), "\n") {
			name, _, _ := strings.Cut(line, ":")
			got.WriteString(name + ": " + strings.Join(w.Header()[name], " | ") + "\n")
		}
		if got.String() != goldenHeaders {
			t.Errorf("%s:\n%s", page, got.String())
		}
		if n := len(w.Header()["Content-Type"]); n != 1 && answer.want != 303 && answer.want != 304 {
			t.Errorf("%s: Content-Type %v", page, w.Header()["Content-Type"])
		}
	}
}

func TestAssets(t *testing.T) {
	d := open(t, testdb.SQLite(t), admin.Options{})
	text := status(t, d.get("tasks/nope"), 404)
	links := regexp.MustCompile(`(?:href|src)="\./\.\./(assets/[^"]+)"`).FindAllStringSubmatch(text, -1)
	if len(links) != 3 {
		t.Fatalf("links %v", links)
	}
	size := 0
	for _, m := range links {
		w := d.get(m[1])
		size += len(status(t, w, 200))
		has(t, w.Header().Get("Cache-Control"), "immutable")
		has(t, w.Header().Get("Content-Security-Policy"), "default-src 'none'")
		if w.Header().Get("X-Content-Type-Options") != "nosniff" || w.Header().Get("Cross-Origin-Resource-Policy") != "same-origin" {
			t.Errorf("%s: headers %v", m[1], w.Header())
		}
	}
	if size > 60_000 {
		t.Errorf("the assets have %d bytes", size)
	}
	all := text + status(t, d.get(""), 200)
	for _, bad := range []string{"http://", "https://", "//cdn", " style=", " onclick", "<style", "javascript:"} {
		hasNot(t, all, bad)
	}
	if inline := regexp.MustCompile(`<script[^>]*>[^<]+`).FindString(all); inline != "" {
		t.Errorf("an inline script: %s", inline)
	}
}

func TestCrossSite(t *testing.T) {
	d := open(t, testdb.SQLite(t), admin.Options{TrustedOrigins: []string{"https://trusted.example"}})
	for name, tt := range map[string]struct {
		header []string
		want   int
	}{
		"none":              {nil, 303},
		"same origin":       {[]string{"Sec-Fetch-Site", "same-origin"}, 303},
		"cross-site":        {[]string{"Sec-Fetch-Site", "cross-site"}, 403},
		"same site":         {[]string{"Sec-Fetch-Site", "same-site"}, 403},
		"an origin":         {[]string{"Origin", "https://evil.example"}, 403},
		"null":              {[]string{"Origin", "null"}, 403},
		"our origin":        {[]string{"Origin", "https://shop.example"}, 303},
		"a trusted origin":  {[]string{"Origin", "https://trusted.example", "Sec-Fetch-Site", "cross-site"}, 303},
		"an http downgrade": {[]string{"Origin", "http://other.shop.example"}, 403},
	} {
		task := d.create(outbox.StartAfter(time.Hour))
		w := d.send("POST", "tasks/"+task.ID+"/cancel", "application/x-www-form-urlencoded", "version=1", tt.header...)
		if w.Code != tt.want {
			t.Errorf("%s: status %d, want %d", name, w.Code, tt.want)
		}
		if tt.want == 403 {
			d.task(task.ID)
		}
	}
}

// hostile texts, each of which would do something if it were not escaped where it stands.
var hostile = []string{
	`<script>alert(1)</script>`, `"><img src=x onerror=alert(1)>`, `' onmouseover='alert(1)`, `</script><script>alert(1)</script>`,
	`javascript:alert(1)`, `{{.}}`, `</textarea><svg onload=alert(1)>`, "\u202eevil\u202c", `--><!--`, `<a href="javascript:alert(1)">`,
	`=HYPERLINK("http://evil")`, `../../x?y=1#z`, `👩‍💻 ` + strings.Repeat("n", 200),
}

func TestHostileTexts(t *testing.T) {
	dbtest.EachInTurn(t, func(t *testing.T, db *gorm.DB) {
		name := ""
		d := open(t, db, admin.Options{Title: hostile[1], Authorize: func(*http.Request, admin.Action) (admin.Actor, error) {
			return admin.Actor{Name: name + "alice"}, nil
		}})
		ids := map[string]bool{}
		for i, text := range hostile {
			doc := func(v any) outbox.JSON {
				b, err := json.Marshal(v)
				must(t, err)
				return outbox.JSON(b)
			}
			short := shortened(text, 36)
			now := time.Now().UTC()
			key := text + "k"
			attempts := outbox.Attempts{{Attempt: 1, At: now, Reason: outbox.Reason(shortened(text, 30)), Error: text}}
			id, past, process := shortened(text, 24)+"-t"+string(rune('a'+i)), shortened(text, 24)+"-h"+string(rune('a'+i)), shortened(text, 24)+"-p"+string(rune('a'+i))
			rerunOf, rerun := short, short
			must(t, db.Create(&outbox.TaskModel{ID: id, Func: text, Args: doc(map[string]string{text: text}), Key: &key, Queue: short, RunAt: now.Add(time.Hour),
				State: outbox.StatePending, Version: 1, RerunOf: &rerunOf, Errors: attempts, Meta: outbox.Meta{text: text}, CreatedAt: now, MaxAttempts: 1}).Error)
			h := outbox.HistoryModel{ID: past, Func: text, Args: doc(map[string]string{text: text}), Key: &key, Queue: short, RunAt: now, CreatedAt: now,
				Status: outbox.StatusError, Reason: outbox.Reason(shortened(text, 32)), Result: doc(text), Error: &text, FinishedAt: now, Errors: attempts, Version: 1, Meta: outbox.Meta{text: text}, RerunOf: &rerunOf}
			must(t, db.Create(&h).Error)
			h.ID, h.RerunID = past+"r", &rerun
			must(t, db.Create(&h).Error)
			for _, state := range []outbox.State{outbox.StateRunning, outbox.StateParked} {
				must(t, db.Create(&outbox.TaskModel{ID: id + string(state)[:1], Func: text, Args: doc(text), Queue: short, RunAt: now, State: state, Version: 1, ProcessID: &process,
					StartedAt: &now, Errors: attempts, CreatedAt: now, MaxAttempts: 1}).Error)
				ids[id+string(state)[:1]] = true
			}
			for _, status := range []outbox.Status{outbox.StatusSuccess, outbox.StatusCancelled} {
				h.ID, h.Status, h.RerunID, h.ProcessID = past+string(status)[:1], status, nil, &process
				must(t, db.Create(&h).Error)
				ids[h.ID] = true
			}
			must(t, db.Create(&outbox.ProcessModel{ID: process, Host: text, Functions: doc([]string{text}), Queues: doc([]string{text}), StartedAt: now, BeatAt: now}).Error)
			must(t, db.Create(&outbox.AuditModel{ID: past, At: now, Actor: text, Action: short[:min(len(short), 32)], TaskID: past, Func: text, Reason: text, Before: doc(text), After: doc(text)}).Error)
			ids[id], ids[past], ids[past+"r"] = true, true, true
		}
		pages := []string{"", "tasks", "tasks?state=failed", "tasks?state=handled", "tasks?state=scheduled", "tasks?state=running", "tasks?state=parked",
			"tasks?state=done", "tasks?state=cancelled", "functions", "processes", "audit"}
		for id := range ids {
			pages = append(pages, "tasks/"+url.PathEscape(id))
		}
		for _, text := range hostile {
			q := url.QueryEscape(text)
			pages = append(pages, "tasks?func="+q, "tasks?error="+q, "tasks?args="+q, "tasks?key="+q, "tasks?process="+url.QueryEscape(shortened(text, 36)), "audit?actor="+q, "audit?task="+url.QueryEscape(shortened(text, 36)))
		}
		for i, page := range pages {
			name = hostile[i%len(hostile)]
			body := status(t, d.get(page), 200)
			sound(t, page, body)
		}
		for _, text := range hostile { // asked whether to, and back again with what was typed
			v := url.Values{"action": {"cancel"}, "filter": {"state=failed&func=" + url.QueryEscape(text)}, "pick": {text + ".1"}, "reason": {text}, "at": {text}}
			name = text
			sound(t, "confirm", status(t, d.post("tasks/bulk", v), 200))
			v.Set("action", "reschedule")
			sound(t, "again", status(t, d.post("tasks/bulk", v), 400))
		}
		for _, text := range hostile { // reflected in errors
			q := url.QueryEscape(text)
			for _, page := range []string{"tasks?" + q + "=1", "tasks?state=" + q, "tasks?cursor=" + q, "tasks?did=" + q + "&n=" + q, "?range=" + q, "tasks/" + url.PathEscape(text), url.PathEscape(text)} {
				w := d.get(page)
				if w.Code >= 500 {
					t.Errorf("%s: status %d", page, w.Code)
				}
				sound(t, page, w.Body.String())
			}
		}
		t.Run("CSV holds no formulas", func(t *testing.T) {
			rows, err := csv.NewReader(strings.NewReader(status(t, d.get("export?format=csv"), 200))).ReadAll()
			must(t, err)
			if len(rows) != 1+7*len(hostile) {
				t.Errorf("%d rows", len(rows))
			}
			for _, row := range rows {
				for _, cell := range row {
					if cell != "" && strings.ContainsAny(cell[:1], "=+-@\t\r") {
						t.Errorf("a formula: %s", cell)
					}
				}
			}
		})
		t.Run("JSON and NDJSON are JSON", func(t *testing.T) {
			for line := range strings.Lines(status(t, d.get("export?format=ndjson"), 200)) {
				if !json.Valid([]byte(line)) {
					t.Errorf("not JSON: %s", line)
				}
			}
			for id := range ids {
				decode[map[string]any](t, status(t, d.get("api/v1/tasks/"+url.PathEscape(id)), 200))
			}
		})
	})
}

func shortened(s string, runes int) string {
	r := []rune(s)
	return string(r[:min(len(r), runes)])
}

var (
	tag      = regexp.MustCompile(`<[a-zA-Z/!][^>]*>`)
	knownTag = regexp.MustCompile(`^</?(html|head|meta|title|link|script|body|a|header|strong|nav|ul|li|div|button|bdi|p|main|footer|time|h1|h2|span|code|section|pre|form|input|label|details|summary|textarea|ol|dl|dt|dd|q|table|caption|thead|tbody|tr|th|td|small|b|i|svg|defs|pattern|path|rect|datalist|option|output|dialog|kbd|select|br)\b`)
	handlers = regexp.MustCompile(`(?i)<[a-z]+(?:\s+[a-z-]+(?:="[^"]*")?)*\s+(?:on[a-z]+|style)\s*=`)
	links    = regexp.MustCompile(`(?:href|action|src)="([^"]*)"`)
)

// sound says whether a page has only our own elements, and links that stay below it.
func sound(t *testing.T, page, body string) {
	t.Helper()
	for _, s := range tag.FindAllString(strings.TrimPrefix(body, "<!doctype html>"), -1) {
		if !knownTag.MatchString(s) || strings.HasPrefix(s, "<script") && !strings.Contains(s, ` src="./`) || strings.Contains(s, "<img") && !strings.Contains(s, "&lt;img") {
			t.Errorf("%s: a foreign element: %s", page, s)
		}
	}
	if s := handlers.FindString(body); s != "" {
		t.Errorf("%s: a handler: %s", page, s)
	}
	for _, m := range links.FindAllStringSubmatch(body, -1) {
		link := html.UnescapeString(m[1])
		if link != "data:," && link != "#main" && !strings.HasPrefix(link, "./") {
			t.Errorf("%s: a link elsewhere: %s", page, link)
		}
		if u, err := url.Parse(link); err != nil || strings.Contains(u.Path[min(len(u.Path), 5):], "../../../") {
			t.Errorf("%s: a link out: %s %v", page, link, err)
		}
	}
}

func TestLargeIntegersAreExact(t *testing.T) {
	dbtest.EachInTurn(t, func(t *testing.T, db *gorm.DB) {
		d := open(t, db, admin.Options{})
		n := int64(9007199254740993)
		task, err := outbox.Create(db, "mail.send", mail{To: "a", N: &n}, outbox.StartAfter(time.Hour))
		must(t, err)
		for _, page := range []string{"tasks", "tasks/" + task.ID, "api/v1/tasks/" + task.ID, "export?format=csv", "export?format=ndjson"} {
			has(t, status(t, d.get(page), 200), "9007199254740993")
		}
	})
}
