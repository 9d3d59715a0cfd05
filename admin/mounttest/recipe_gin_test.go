package mounttest_test

import (
	"context"
	"net/http"

	"github.com/gin-gonic/gin"
	"github.com/justinas/nosurf"
)

func ginRecipe(r *gin.Engine, pages http.Handler) http.Handler {
	h := http.StripPrefix("/admin", pages)
	r.Match([]string{"GET", "HEAD", "POST"}, "/admin/*path", func(c *gin.Context) {
		// The request's context does not have what c.Set has put into gin's.
		user, _ := c.Get("user")
		ctx := context.WithValue(c.Request.Context(), userKey{}, user)
		h.ServeHTTP(c.Writer, c.Request.WithContext(ctx))
	})
	protected := nosurf.New(r)
	protected.ExemptRegexp("^/admin/")
	return protected // the http.Server's Handler
}
