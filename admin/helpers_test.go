package admin_test

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/admin"
)

// everything lets one user do all.
func everything(*http.Request, admin.Action) (admin.Actor, error) {
	return admin.Actor{Name: "alice"}, nil
}

type mail struct {
	To string `json:"to"`
	N  *int64 `json:"n,omitempty"`
}

// desk is an application with its pages, mounted under a prefix.
type desk struct {
	t    *testing.T
	db   *gorm.DB
	p    *outbox.Plugin
	h    http.Handler
	fail bool // whether mail.send fails
}

func open(t *testing.T, db *gorm.DB, opts admin.Options) *desk {
	t.Helper()
	d := &desk{t: t, db: db, p: outbox.New(outbox.Options{Logger: slog.New(slog.DiscardHandler)})}
	d.p.Handle("mail.send", func(context.Context, mail) (string, error) {
		if d.fail {
			return "", errors.New("dial tcp: timeout\nsecond line")
		}
		return "sent", nil
	})
	if err := errors.Join(db.Use(d.p), d.p.Migrate(t.Context())); err != nil {
		t.Fatal(err)
	}
	if opts.Authorize == nil {
		opts.Authorize = everything
	}
	opts.QueryTimeout = cmp.Or(opts.QueryTimeout, time.Minute) // for a busy machine
	opts.Logger = slog.New(slog.NewTextHandler(testWriter{t}, nil))
	pages, err := admin.New(d.p, opts)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("/ops/outbox/", http.StripPrefix("/ops/outbox", pages))
	d.h = mux
	return d
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

func slogTo(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }

// send answers a request; the path is below the prefix.
func (d *desk) send(method, path, kind, body string, header ...string) *httptest.ResponseRecorder {
	d.t.Helper()
	r := httptest.NewRequestWithContext(d.t.Context(), method, "https://shop.example/ops/outbox/"+path, strings.NewReader(body))
	if kind != "" {
		r.Header.Set("Content-Type", kind)
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	d.h.ServeHTTP(w, r)
	return w
}

func (d *desk) get(path string) *httptest.ResponseRecorder {
	d.t.Helper()
	return d.send("GET", path, "", "")
}

func (d *desk) post(path string, form url.Values) *httptest.ResponseRecorder {
	d.t.Helper()
	return d.send("POST", path, "application/x-www-form-urlencoded", form.Encode())
}

func (d *desk) postJSON(path, body string) *httptest.ResponseRecorder {
	d.t.Helper()
	return d.send("POST", path, "application/json", body)
}

func (d *desk) create(opts ...outbox.CreateOption) *outbox.TaskModel {
	d.t.Helper()
	task, err := outbox.Create(d.db, "mail.send", mail{To: "ann@example.com"}, opts...)
	if err != nil {
		d.t.Fatal(err)
	}
	return task
}

// failed creates a task and lets it fail.
func (d *desk) failed(opts ...outbox.CreateOption) *outbox.HistoryModel {
	d.t.Helper()
	task := d.create(opts...)
	d.fail = true
	if _, err := d.p.RunDue(d.t.Context()); err != nil {
		d.t.Fatal(err)
	}
	d.fail = false
	return d.past(task.ID)
}

func (d *desk) past(id string) *outbox.HistoryModel {
	d.t.Helper()
	_, past, err := outbox.Lookup(d.db, id)
	if err != nil || past == nil {
		d.t.Fatalf("%s is not in history: %v", id, err)
	}
	return past
}

func (d *desk) task(id string) *outbox.TaskModel {
	d.t.Helper()
	task, _, err := outbox.Lookup(d.db, id)
	if err != nil || task == nil {
		d.t.Fatalf("%s is not in the task table: %v", id, err)
	}
	return task
}

func (d *desk) audit() (rows []outbox.AuditModel) {
	d.t.Helper()
	if err := d.db.Order("id").Find(&rows).Error; err != nil {
		d.t.Fatal(err)
	}
	return rows
}

func status(t *testing.T, w *httptest.ResponseRecorder, want int) string {
	t.Helper()
	body, _ := io.ReadAll(w.Result().Body)
	if w.Code != want {
		t.Errorf("status %d, want %d\n%.2000s", w.Code, want, body)
	}
	return string(body)
}

func has(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("does not contain %q:\n%.3000s", part, text)
		}
	}
}

func hasNot(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if strings.Contains(text, part) {
			i := strings.Index(text, part)
			t.Errorf("contains %q: …%s…", part, text[max(0, i-200):min(len(text), i+200)])
		}
	}
}

func decode[T any](t *testing.T, text string) (v T) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return v
}
