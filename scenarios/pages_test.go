package scenarios_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/admin"
	"github.com/gorm-outbox/outbox/internal/dbtest"
)

type request struct{ method, path, kind, body string }

// The administrator's pages return soon after a request's context ends while the database does not
// answer: when the browser has gone, and when the server's own limit is over.
func TestPagesReturnSoonAfterTheirRequest(t *testing.T) {
	const id, form, document = "X-Call", "application/x-www-form-urlencoded", "application/json"
	each(t, func(t *testing.T, d database, _ string) {
		for name, stall := range d.stalls() {
			for how, limit := range map[string]time.Duration{"the browser has gone": 0, "a TimeoutHandler": 400 * time.Millisecond} {
				t.Run(name+"/"+how, func(t *testing.T) {
					t.Parallel()
					through, begin := stall(t, d.dsn(t))
					db := d.open(t, through, nil)
					p := dbtest.Install(t, db, quick(), func(p *outbox.Plugin) { p.Handle("ordinary", fine) })
					past, waiting := dbtest.Create(t, db, "ordinary", nil), dbtest.Create(t, db, "ordinary", nil, outbox.StartAfter(time.Hour))
					if _, err := p.RunDue(t.Context()); err != nil {
						t.Fatal(err)
					}
					pages, err := admin.New(p, admin.Options{
						QueryTimeout: time.Hour, Logger: slog.New(slog.DiscardHandler),
						Authorize: func(*http.Request, admin.Action) (admin.Actor, error) { return admin.Actor{Name: "ann"}, nil },
					})
					if err != nil {
						t.Fatal(err)
					}
					begin(pool(t, db))

					requests := map[string]request{}
					for _, path := range []string{
						"", "tasks?state=pending", "tasks?state=failed&args=x", "tasks/" + waiting.ID, "tasks/" + past.ID, "functions",
						"processes", "audit", "export?format=csv", "export?format=ndjson&state=done", "api/v1/overview", "api/v1/tasks",
						"api/v1/tasks/" + past.ID, "api/v1/functions", "api/v1/processes", "api/v1/audit",
					} {
						requests["GET /"+path] = request{"GET", path, "", ""}
					}
					for action, task := range map[string]*outbox.TaskModel{
						"rerun": past, "discard": past, "run_now": waiting, "reschedule": waiting, "cancel": waiting,
					} {
						one, picked, start := url.Values{"version": {fmt.Sprint(task.Version)}}, url.Values{"confirmed": {"yes"}}, ""
						picked.Set("action", action)
						picked.Set("pick", fmt.Sprint(task.ID, ".", task.Version))
						if action == "reschedule" {
							one.Set("at", "2099-01-02T03:04:05Z")
							picked.Set("at", "2099-01-02T03:04:05Z")
							start = `"at":"2099-01-02T03:04:05Z",`
						}
						path := "tasks/" + task.ID + "/" + action
						requests["the form "+action] = request{"POST", path, form, one.Encode()}
						requests["the API's "+action] = request{"POST", "api/v1/" + path, document, fmt.Sprintf(`{%s"version":%d}`, start, task.Version)}
						requests["the form of many "+action] = request{"POST", "tasks/bulk", form, picked.Encode()}
						requests["the API's many "+action] = request{"POST", "api/v1/tasks/bulk", document,
							fmt.Sprintf(`{"action":%q,%s"tasks":[{"id":%q,"version":%d}]}`, action, start, task.ID, task.Version)}
					}
					requests["the form of all"] = request{"POST", "tasks/bulk", form, url.Values{"action": {"run_now"}, "all": {"1"},
						"filter": {"state=scheduled"}, "asof": {"2026-01-02T03:04:05Z"}, "count": {"1"}}.Encode()}

					handled := map[string]chan struct{}{}
					for name := range requests {
						handled[name] = make(chan struct{})
					}
					var handler http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						defer close(handled[r.Header.Get(id)])
						pages.ServeHTTP(w, r)
					})
					if limit > 0 {
						handler = http.TimeoutHandler(handler, limit, "too late")
					}
					server := httptest.NewServer(handler)
					calls := map[string]func(context.Context) error{}
					for name, r := range requests {
						calls[name] = func(ctx context.Context) error {
							sent := ctx
							if limit > 0 {
								sent = t.Context()
							}
							sending, err := http.NewRequestWithContext(sent, r.method, server.URL+"/"+r.path, strings.NewReader(r.body))
							if err != nil {
								return err
							}
							sending.Header.Set(id, name)
							if r.kind != "" {
								sending.Header.Set("Content-Type", r.kind)
							}
							response, err := server.Client().Do(sending)
							if err == nil {
								_, err = io.Copy(io.Discard, response.Body)
								_ = response.Body.Close()
								err = errors.Join(err, errors.New(response.Status))
							}
							<-handled[name]
							return err
						}
					}
					returnSoon(t, calls)
					if !t.Failed() {
						server.Close()
					}
				})
			}
		}
	})
}

// The server falls silent at the commit of a change.
func TestPageReturnsSoonFromItsCommit(t *testing.T) {
	servers(t, func(t *testing.T, d database, dsn string) {
		px, through := startProxy(t, d, dsn)
		db := d.open(t, through, nil)
		p := dbtest.Install(t, db, quick(), func(p *outbox.Plugin) { p.Handle("ordinary", fine) })
		task := dbtest.Create(t, db, "ordinary", nil, outbox.StartAfter(time.Hour))
		pages, err := admin.New(p, admin.Options{
			Logger:    slog.New(slog.DiscardHandler),
			Authorize: func(*http.Request, admin.Action) (admin.Actor, error) { return admin.Actor{Name: "ann"}, nil },
		})
		if err != nil {
			t.Fatal(err)
		}
		commits := px.once(hole, "commit")
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		body := strings.NewReader(fmt.Sprintf(`{"version":%d}`, task.Version))
		sent := httptest.NewRequestWithContext(ctx, "POST", "/api/v1/tasks/"+task.ID+"/cancel", body)
		sent.Header.Set("Content-Type", "application/json")
		over := make(chan struct{})
		go func() { pages.ServeHTTP(httptest.NewRecorder(), sent); close(over) }()
		dbtest.Receive(t, commits)
		cancel()
		select {
		case <-over:
		case <-time.After(soon):
			t.Errorf("it has not returned %v after its request", soon)
		}
	})
}
