package mounttest_test

import (
	"net/http"
	"strings"

	"github.com/go-chi/chi/v5"
	"github.com/gorilla/csrf"
)

func chiRecipe(r *chi.Mux, pages http.Handler) {
	protect := csrf.Protect(csrfKey)
	r.Use(func(next http.Handler) http.Handler {
		protected := protect(next)
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.HasPrefix(r.URL.Path, "/admin/") {
				next.ServeHTTP(w, r)
			} else {
				protected.ServeHTTP(w, r)
			}
		})
	})
	r.Use(signIn) // yours; it has put the user into r.Context() by the key userKey{}
	r.Mount("/admin", http.StripPrefix("/admin", pages))
}
