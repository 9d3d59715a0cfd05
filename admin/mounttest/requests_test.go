package mounttest_test

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/admin"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

// log is what the pages have logged.
type log struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// shop is a server with the pages of a plugin.
type shop struct {
	db     *gorm.DB
	plugin *outbox.Plugin
	said   *log
	root   string
}

// open serves the pages; a request without X-User is not signed in, and only alice may cancel.
func open(t *testing.T, serve serve, redact func(*gorm.DB) func(string, []byte) []byte) *shop {
	t.Helper()
	s := newShop(t)
	opts := admin.Options{Authorize: func(r *http.Request, a admin.Action) (admin.Actor, error) {
		user := r.Header.Get("X-User")
		switch {
		case user == "":
			return admin.Actor{}, admin.ErrUnauthenticated
		case a == admin.Cancel && user != "alice":
			return admin.Actor{}, errors.New("only alice")
		}
		return admin.Actor{Name: user}, nil
	}}
	if redact != nil {
		opts.Redact = redact(s.db)
	}
	s.serve(t, serve, opts, "/ops/outbox/")
	return s
}

func newShop(t *testing.T) *shop {
	t.Helper()
	s := &shop{db: testdb.SQLite(t), plugin: outbox.New(outbox.Options{Logger: slog.New(slog.DiscardHandler), ProducerOnly: true}), said: &log{}}
	if err := errors.Join(s.db.Use(s.plugin), s.plugin.Migrate(t.Context())); err != nil {
		t.Fatal(err)
	}
	return s
}

// serve lets a server have the pages; paths are sent below root.
func (s *shop) serve(t *testing.T, serve serve, opts admin.Options, root string) {
	t.Helper()
	opts.Logger = slog.New(slog.NewTextHandler(s.said, nil))
	pages, err := admin.New(s.plugin, opts)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serve(t, l, pages)
	s.root = "http://" + l.Addr().String() + root
}

// answer is what came, and whether it broke off.
type answer struct {
	status int
	header http.Header
	body   string
	err    error
}

func (s *shop) send(t *testing.T, method, path, body string, header ...string) answer {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, s.root+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-User", "alice")
	for i := 0; i+1 < len(header); i += 2 {
		if r.Header.Del(header[i]); header[i+1] != "" {
			r.Header.Set(header[i], header[i+1])
		}
	}
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	w, err := client.Do(r)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer w.Body.Close()
	text, err := io.ReadAll(w.Body)
	return answer{w.StatusCode, w.Header, string(text), err}
}

func (s *shop) create(t *testing.T) *outbox.TaskModel {
	t.Helper()
	task, err := outbox.Create(s.db, "mail.send", nil, outbox.StartAfter(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	return task
}

// TestRequests sends what a router or an adaptor might spoil: methods, bodies, headers, statuses,
// escaped paths.
func TestRequests(t *testing.T) {
	const form, document = "application/x-www-form-urlencoded", "application/json"
	for name, serve := range routers {
		t.Run(name, func(t *testing.T) {
			s := open(t, serve, nil)
			a, b, c := s.create(t), s.create(t), s.create(t)
			odd := "a/b ü?#%"
			if err := s.db.Model(&outbox.TaskModel{}).Where("id = ?", c.ID).Update("id", odd).Error; err != nil {
				t.Fatal(err)
			}
			for name, tt := range map[string]struct {
				method, path, body string
				header             []string
				status             int
				has                string
			}{
				"a list":           {"GET", "api/v1/tasks?state=scheduled&limit=1", "", nil, 200, `{"data":[{`},
				"HEAD":             {"HEAD", "tasks?state=scheduled", "", nil, 200, ""},
				"JSON":             {"POST", "api/v1/tasks/" + a.ID + "/cancel", `{"version":1}`, []string{"Content-Type", document}, 200, a.ID},
				"a form":           {"POST", "tasks/" + b.ID + "/cancel", "version=1&reason=%C3%BC", []string{"Content-Type", form}, 303, ""},
				"a conflict":       {"POST", "api/v1/tasks/%61%2Fb%20%C3%BC%3F%23%25/cancel", `{"version":7}`, []string{"Content-Type", document}, 409, `"version":1`},
				"an escaped id":    {"GET", "api/v1/tasks/a%2Fb%20%C3%BC%3F%23%25", "", nil, 200, `"id":"a/b ü?#%"`},
				"not signed in":    {"GET", "api/v1/tasks", "", []string{"X-User", ""}, 401, "application/problem+json"},
				"not allowed":      {"POST", "tasks/" + a.ID + "/cancel", "version=1", []string{"Content-Type", form, "X-User", "bob"}, 403, "(cancel)"},
				"from another":     {"POST", "tasks/" + a.ID + "/cancel", "version=1", []string{"Content-Type", form, "Sec-Fetch-Site", "cross-site"}, 403, "another site"},
				"a large body":     {"POST", "tasks/" + a.ID + "/cancel", "version=1&reason=" + strings.Repeat("x", 1<<20), []string{"Content-Type", form}, 413, "1048576"},
				"no such method":   {"DELETE", "tasks", "", nil, 405, "GET or HEAD"},
				"what is not read": {"GET", "tasks?state=failed&odd=1", "", nil, 400, "odd"},
				"an export":        {"GET", "export?format=ndjson&state=scheduled", "", nil, 200, `"id":"a/b ü?#%"`},
			} {
				got := s.send(t, tt.method, tt.path, tt.body, tt.header...)
				text := got.body + strings.Join(got.header["Content-Type"], "")
				if got.status != tt.status || got.err != nil || !strings.Contains(text, tt.has) {
					t.Errorf("%s: status %d, %v, want %d with %s\n%.1000s", name, got.status, got.err, tt.status, tt.has, text)
				}
				if got.header.Get("Content-Security-Policy") == "" || len(got.header["Cache-Control"]) != 1 {
					t.Errorf("%s: headers %v", name, got.header)
				}
			}
		})
	}
}

// TestExportThatFails: an export that cannot be finished says so in its last record, breaks the
// connection off where that is possible, and takes nothing with it.
func TestExportThatFails(t *testing.T) {
	for name, serve := range routers {
		t.Run(name, func(t *testing.T) {
			n := 0
			s := open(t, serve, func(db *gorm.DB) func(string, []byte) []byte {
				return func(_ string, args []byte) []byte { // which every row passes on its way out
					if n++; n%200 == 0 {
						if err := db.Exec("ALTER TABLE outbox_tasks RENAME TO away").Error; err != nil {
							t.Error(err)
						}
					}
					return args
				}
			})
			for range 250 {
				s.create(t)
			}
			for format, last := range map[string]string{"ndjson": `{"error":"`, "csv": `"The export stopped here`} {
				got := s.send(t, "GET", "export?state=scheduled&format="+format, "")
				lines := strings.Split(strings.TrimSpace(got.body), "\n")
				end := lines[len(lines)-1]
				if len(lines) < 201 || !strings.Contains(end, "the rest is missing") || !strings.HasPrefix(end, last) {
					t.Errorf("%s: %d lines, the last is %.200s", format, len(lines), end)
				}
				if cut := got.err != nil; cut != (name != "fiber") { // whose adaptor has no connection to give
					t.Errorf("%s: breaks off: %v", format, got.err)
				}
				if err := s.db.Exec("ALTER TABLE away RENAME TO outbox_tasks").Error; err != nil {
					t.Fatal(err)
				}
				if again := s.send(t, "GET", "tasks", ""); again.status != http.StatusOK {
					t.Errorf("%s: afterwards: status %d", format, again.status)
				}
			}
			if n := strings.Count(s.said.String(), "level=ERROR"); n != 2 {
				t.Errorf("%d errors in the log:\n%s", n, s.said)
			}
		})
	}
}
