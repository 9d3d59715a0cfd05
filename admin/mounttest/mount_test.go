package mounttest_test

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/go-chi/chi/v5"
	"github.com/gofiber/fiber/v2"
	"github.com/gofiber/fiber/v2/middleware/adaptor"
	"github.com/labstack/echo/v4"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/admin"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

// serve runs a server on the listener until the test ends.
type serve func(t *testing.T, l net.Listener, pages http.Handler)

func plain(t *testing.T, l net.Listener, h http.Handler) {
	server := &http.Server{Handler: h, ReadHeaderTimeout: time.Second}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
}

// Each mounts the pages at /ops/outbox, the way that docs/admin.md says.
var routers = map[string]serve{
	"net/http": func(t *testing.T, l net.Listener, pages http.Handler) {
		mux := http.NewServeMux()
		mux.Handle("/ops/outbox/", http.StripPrefix("/ops/outbox", pages))
		plain(t, l, mux)
	},
	"chi": func(t *testing.T, l net.Listener, pages http.Handler) {
		r := chi.NewRouter()
		r.Mount("/ops/outbox", http.StripPrefix("/ops/outbox", pages))
		plain(t, l, r)
	},
	"gin": func(t *testing.T, l net.Listener, pages http.Handler) {
		gin.SetMode(gin.ReleaseMode)
		gin.DefaultWriter = io.Discard
		r := gin.Default()
		r.Any("/ops/outbox/*any", gin.WrapH(http.StripPrefix("/ops/outbox", pages)))
		plain(t, l, r)
	},
	"echo": func(t *testing.T, l net.Listener, pages http.Handler) {
		e := echo.New()
		h := echo.WrapHandler(http.StripPrefix("/ops/outbox", pages))
		e.Any("/ops/outbox", h)
		e.Any("/ops/outbox/*", h)
		plain(t, l, e)
	},
	"fiber": func(t *testing.T, l net.Listener, pages http.Handler) {
		app := fiber.New(fiber.Config{DisableStartupMessage: true})
		app.Use("/ops/outbox", adaptor.HTTPHandler(http.StripPrefix("/ops/outbox", pages)))
		go app.Listener(l)
		// Not Shutdown: it writes what a context that was derived from a request's may still read,
		// unguarded.
		t.Cleanup(func() { l.Close() })
	},
}

var href = regexp.MustCompile(`(?:href|src)="(\.[^"#]*)"`)

// TestMount follows every link of the pages, as a browser would, and changes a task.
func TestMount(t *testing.T) {
	for name, serve := range routers {
		t.Run(name, func(t *testing.T) {
			db := testdb.SQLite(t)
			plugin := outbox.New(outbox.Options{Logger: slog.New(slog.DiscardHandler), ProducerOnly: true})
			if err := errors.Join(db.Use(plugin), plugin.Migrate(t.Context())); err != nil {
				t.Fatal(err)
			}
			task, err := outbox.Create(db, "mail.send", nil, outbox.StartAfter(time.Hour))
			if err != nil {
				t.Fatal(err)
			}
			pages, err := admin.New(plugin, admin.Options{Authorize: func(*http.Request, admin.Action) (admin.Actor, error) {
				return admin.Actor{Name: "alice"}, nil
			}})
			if err != nil {
				t.Fatal(err)
			}
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			serve(t, l, pages)
			jar, _ := cookiejar.New(nil)
			client := &http.Client{Jar: jar, Timeout: 30 * time.Second}
			root, _ := url.Parse("http://" + l.Addr().String() + "/ops/outbox")

			read := func(w *http.Response, err error) string {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
				defer w.Body.Close()
				body, err := io.ReadAll(w.Body)
				if err != nil || w.StatusCode != http.StatusOK {
					t.Errorf("%s: status %d, %v", w.Request.URL, w.StatusCode, err)
				}
				return string(body)
			}
			seen := map[string]bool{}
			open := []*url.URL{root}
			for len(open) > 0 {
				u := open[0]
				open = open[1:]
				w, err := client.Get(u.String())
				body := read(w, err)
				if !strings.HasPrefix(w.Request.URL.Path, "/ops/outbox/") {
					t.Fatalf("%s leads to %s", u, w.Request.URL)
				}
				for _, m := range href.FindAllStringSubmatch(body, -1) {
					next, err := w.Request.URL.Parse(strings.ReplaceAll(m[1], "&amp;", "&"))
					if err != nil {
						t.Fatal(err)
					}
					if !seen[next.String()] {
						seen[next.String()] = true
						open = append(open, next)
					}
				}
			}
			if len(seen) < 25 || !seen[root.String()+"/tasks/"+task.ID] {
				t.Errorf("only %d links: %v", len(seen), seen)
			}
			body := read(client.PostForm(root.String()+"/tasks/"+task.ID+"/cancel", url.Values{"version": {"1"}}))
			if !strings.Contains(body, "1 task cancelled") {
				t.Errorf("after the change:\n%s", body)
			}
		})
	}
}
