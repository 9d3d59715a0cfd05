package mounttest_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/gin-gonic/gin"
	"github.com/go-chi/chi/v5"
	"github.com/gofiber/fiber/v2"
	"github.com/gofiber/fiber/v2/middleware/adaptor"
	"github.com/labstack/echo/v4"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/admin"
)

type userKey struct{}

var csrfKey = []byte("an example's key, of 32 bytes ...")[:32]

func signIn(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), userKey{}, r.Header.Get("X-User"))))
	})
}

// byContext asks only the request's context who has signed in.
func byContext(r *http.Request, _ admin.Action) (admin.Actor, error) {
	user, _ := r.Context().Value(userKey{}).(string)
	if user == "" {
		return admin.Actor{}, admin.ErrUnauthenticated
	}
	return admin.Actor{Name: user}, nil
}

// Each is an application that signs users in its own way, with a CSRF middleware before everything
// and the pages at /admin by the recipe. Beside them the same pages are at /unexempted, without.
var recipes = map[string]serve{
	"chi": func(t *testing.T, l net.Listener, pages http.Handler) {
		r := chi.NewRouter()
		chiRecipe(r, pages)
		r.Mount("/unexempted", http.StripPrefix("/unexempted", pages))
		plain(t, l, r)
	},
	"gin": func(t *testing.T, l net.Listener, pages http.Handler) {
		gin.SetMode(gin.ReleaseMode)
		r := gin.New()
		r.Use(func(c *gin.Context) { c.Set("user", c.GetHeader("X-User")) })
		h := ginRecipe(r, pages)
		r.Any("/unexempted/*any", gin.WrapH(http.StripPrefix("/unexempted", pages)))
		plain(t, l, h)
	},
	"echo": func(t *testing.T, l net.Listener, pages http.Handler) {
		e := echo.New()
		e.Use(func(next echo.HandlerFunc) echo.HandlerFunc {
			return func(c echo.Context) error {
				c.Set("user", c.Request().Header.Get("X-User"))
				return next(c)
			}
		})
		echoRecipe(e, pages)
		e.Any("/unexempted/*", echo.WrapHandler(http.StripPrefix("/unexempted", pages)))
		plain(t, l, e)
	},
	"fiber": func(t *testing.T, l net.Listener, pages http.Handler) {
		app := fiber.New(fiber.Config{DisableStartupMessage: true})
		app.Use(func(c *fiber.Ctx) error {
			c.Locals("user", strings.Clone(c.Get("X-User")))
			return c.Next()
		})
		fiberRecipe(app, pages)
		app.All("/unexempted/*", adaptor.HTTPHandler(http.StripPrefix("/unexempted", pages)))
		go app.Listener(l)
		t.Cleanup(func() { l.Close() })
	},
}

// TestRecipes: behind a CSRF middleware the pages work by the recipe, they know the user, and a
// form from another site is refused by the pages themselves.
func TestRecipes(t *testing.T) {
	for name, serve := range recipes {
		t.Run(name, func(t *testing.T) {
			s := newShop(t)
			s.serve(t, serve, admin.Options{Authorize: byContext}, "/")
			task := s.create(t)
			cancel := func(prefix string, header ...string) answer {
				header = append(header, "Content-Type", "application/x-www-form-urlencoded", "Origin", strings.TrimSuffix(s.root, "/"))
				return s.send(t, "POST", prefix+"/tasks/"+task.ID+"/cancel", "version=1", header...)
			}
			if got := cancel("unexempted"); got.status != 403 && got.status != 400 || strings.Contains(got.body, "Outbox") {
				t.Errorf("without the exemption: status %d\n%s", got.status, got.body)
			}
			if got := s.send(t, "GET", "admin/tasks", "", "X-User", ""); got.status != 401 {
				t.Errorf("not signed in: status %d", got.status)
			}
			for _, path := range []string{"admin/", "admin/tasks", "admin/api/v1/tasks"} {
				if got := s.send(t, "GET", path, ""); got.status != 200 {
					t.Errorf("GET %s: status %d", path, got.status)
				}
				if got := s.send(t, "HEAD", path, ""); got.status != 200 {
					t.Errorf("HEAD %s: status %d", path, got.status)
				}
			}
			if got := s.send(t, "GET", "admin", ""); got.status != 301 || !strings.HasSuffix(got.header.Get("Location"), "admin/") {
				t.Errorf("GET admin: status %d to %q", got.status, got.header.Get("Location"))
			}
			if got := cancel("admin", "Sec-Fetch-Site", "cross-site"); got.status != 403 || !strings.Contains(got.body, "another site") {
				t.Errorf("from another site: status %d\n%s", got.status, got.body)
			}
			if got := cancel("admin"); got.status != 303 {
				t.Errorf("with the exemption: status %d\n%s", got.status, got.body)
			}
			if got := s.send(t, "GET", "admin/audit", ""); !strings.Contains(got.body, "alice") {
				t.Errorf("the audit does not name the user:\n%s", got.body)
			}
			if _, past, err := outbox.Lookup(s.db, task.ID); err != nil || past == nil || past.Status != outbox.StatusCancelled {
				t.Errorf("the task has ended as %+v, %v", past, err)
			}
		})
	}
}

// TestRecipesAreQuoted: docs/admin.md shows what TestRecipes tests.
func TestRecipesAreQuoted(t *testing.T) {
	doc, err := os.ReadFile("../../docs/admin.md")
	if err != nil {
		t.Fatal(err)
	}
	for name := range recipes {
		code, err := os.ReadFile("recipe_" + name + "_test.go")
		if err != nil {
			t.Fatal(err)
		}
		recipe := regexp.MustCompile(`(?s)\nfunc \w+Recipe\(.*?\n}\n`).FindString(string(code))
		if recipe == "" || !strings.Contains(string(doc), fmt.Sprintf("```go %s%s```\n", name, recipe)) {
			t.Errorf("docs/admin.md does not quote %s's recipe:\n%s", name, recipe)
		}
	}
}
