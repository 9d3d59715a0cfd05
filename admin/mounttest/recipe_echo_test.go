package mounttest_test

import (
	"context"
	"net/http"
	"strings"

	"github.com/labstack/echo/v4"
	"github.com/labstack/echo/v4/middleware"
)

func echoRecipe(e *echo.Echo, pages http.Handler) {
	e.Use(middleware.CSRFWithConfig(middleware.CSRFConfig{Skipper: func(c echo.Context) bool {
		return strings.HasPrefix(c.Request().URL.Path, "/admin/")
	}}))
	h := http.StripPrefix("/admin", pages)
	handler := func(c echo.Context) error {
		// The request's context does not have what c.Set has put into echo's.
		ctx := context.WithValue(c.Request().Context(), userKey{}, c.Get("user"))
		h.ServeHTTP(c.Response(), c.Request().WithContext(ctx))
		return nil
	}
	e.Match([]string{"GET", "HEAD", "POST"}, "/admin", handler)
	e.Match([]string{"GET", "HEAD", "POST"}, "/admin/*", handler)
}
