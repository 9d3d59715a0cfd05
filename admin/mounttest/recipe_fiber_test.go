package mounttest_test

import (
	"net/http"
	"strings"

	"github.com/gofiber/fiber/v2"
	"github.com/gofiber/fiber/v2/middleware/adaptor"
	"github.com/gofiber/fiber/v2/middleware/csrf"
)

func fiberRecipe(app *fiber.App, pages http.Handler) {
	app.Use(csrf.New(csrf.Config{Next: func(c *fiber.Ctx) bool {
		return strings.HasPrefix(c.Path(), "/admin/")
	}}))
	h := adaptor.HTTPHandler(http.StripPrefix("/admin", pages))
	app.All("/admin/*", func(c *fiber.Ctx) error {
		c.Locals(userKey{}, c.Locals("user")) // Locals are the values of the request's context
		return h(c)
	})
}
