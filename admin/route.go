package admin

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

const (
	maxBody = 1 << 20
	maxPath = 1024

	policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; " +
		"form-action 'self'; frame-ancestors 'none'; base-uri 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)

// request is one request that is being served.
type request struct {
	s      *site
	w      http.ResponseWriter
	r      *http.Request
	ctx    context.Context // with the time limit
	limit  time.Duration   // of a page, or of an operation that may take longer
	actor  Actor
	page   string // for the log: which page, without the sender's input
	up     string // from the request's URL to the root of the pages: "./" or "../"…
	api    bool
	may    map[Action]bool
	back   string  // where to go after an error, relative to the root
	origin *filter // the list from which a task was opened, if known
	said   *notice
	at     time.Time // by the database's clock, once it was read
}

// now is the time of this request for everything that it shows, by one clock: the database's.
func (q *request) now() (time.Time, error) {
	var err error
	if q.at.IsZero() {
		q.at, err = q.s.now(q.ctx)
	}
	return q.at, err
}

// ServeHTTP handles every request in the same order: headers, cross-site check, permission, page.
func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := strings.TrimPrefix(r.URL.EscapedPath(), "/")
	parts := strings.Split(path, "/")
	for i, part := range parts { // an id may have any character
		if text, err := url.PathUnescape(part); err == nil {
			parts[i] = text
		}
	}
	q := &request{s: s, w: w, r: r, page: parts[0], up: "./" + strings.Repeat("../", len(parts)-1), api: parts[0] == "api", may: map[Action]bool{}}
	h := w.Header()
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "same-origin") // with no-referrer the Origin of forms would be null
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=()")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Cache-Control", "no-store")
	q.ctx, q.limit = r.Context(), s.opts.QueryTimeout
	if err := s.cross.Check(r); err != nil {
		q.refuse(fail(http.StatusForbidden, "The request came from another site."))
		return
	}
	if len(path) > maxPath {
		q.refuse(fail(http.StatusNotFound, "There is no such page."))
		return
	}
	if parts[0] == "assets" && len(parts) == 2 { // public; the page of a 401 needs them
		q.asset(parts[1])
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxBody) // Authorize may read the form
	if err := q.need(View); err != nil {
		q.refuse(err)
		return
	}
	// The limit begins here, because the check of a password takes time.
	ctx, cancel := context.WithTimeout(r.Context(), s.opts.QueryTimeout)
	defer cancel()
	q.ctx = ctx
	// URL.Query would drop parameters that it cannot read, for example a part of a filter.
	if _, err := url.ParseQuery(r.URL.RawQuery); err != nil {
		q.refuse(fail(http.StatusBadRequest, "The URL's parameters cannot be read: they are separated by & and escaped with %%."))
		return
	}
	if r.URL.Path == "" && r.URL.RawPath == "" && r.Method == http.MethodGet {
		// This is the mount point without its slash, where relative links would miss the prefix.
		base := r.RequestURI
		if i := strings.IndexByte(base, '?'); i >= 0 {
			base = base[:i]
		}
		if last := base[strings.LastIndexByte(base, '/')+1:]; last != "" {
			w.Header().Set("Location", "./"+last+"/")
			w.WriteHeader(http.StatusMovedPermanently)
			return
		}
	}
	if err := q.route(parts); err != nil {
		q.refuse(err)
	}
}

func (q *request) route(parts []string) error {
	get := func(f func() error) error { return q.method(f, http.MethodGet, http.MethodHead) }
	post := func(f func() error) error {
		return q.method(func() error {
			if err := only(q.r.URL.Query()); err != nil { // a change reads only its body
				return err
			}
			return f()
		}, http.MethodPost)
	}
	n := len(parts)
	switch {
	case n == 1 && parts[0] == "":
		return get(q.overview)
	case n == 1 && parts[0] == "tasks":
		return get(q.list)
	case n == 1 && parts[0] == "export":
		return get(q.export)
	case n == 1 && parts[0] == "functions":
		return get(q.functions)
	case n == 1 && parts[0] == "processes":
		return get(q.processes)
	case n == 1 && parts[0] == "audit":
		return get(q.audit)
	case n == 2 && parts[0] == "tasks" && parts[1] == "bulk":
		return post(q.bulkForm)
	case n == 2 && parts[0] == "tasks" && parts[1] != "":
		return get(func() error { return q.detail(parts[1]) })
	case n == 3 && parts[0] == "tasks" && slices.Contains(changes, Action(parts[2])):
		return post(func() error { return q.changeForm(parts[1], Action(parts[2])) })
	case parts[0] == "api" && n > 2 && parts[1] == "v1":
		return q.routeAPI(parts[2:], get, post)
	}
	return fail(http.StatusNotFound, "There is no such page.")
}

func (q *request) routeAPI(parts []string, get, post func(func() error) error) error {
	n := len(parts)
	switch {
	case n == 1 && parts[0] == "overview":
		return get(q.apiOverview)
	case n == 1 && parts[0] == "tasks":
		return get(q.apiList)
	case n == 1 && parts[0] == "functions":
		return get(q.apiFunctions)
	case n == 1 && parts[0] == "processes":
		return get(q.apiProcesses)
	case n == 1 && parts[0] == "audit":
		return get(q.apiAudit)
	case n == 2 && parts[0] == "tasks" && parts[1] == "bulk":
		return post(q.apiBulk)
	case n == 2 && parts[0] == "tasks" && parts[1] != "":
		return get(func() error { return q.apiDetail(parts[1]) })
	case n == 3 && parts[0] == "tasks" && slices.Contains(changes, Action(parts[2])):
		return post(func() error { return q.apiChange(parts[1], Action(parts[2])) })
	}
	return fail(http.StatusNotFound, "There is no such resource. There are: overview, tasks, tasks/{id}, functions, processes, audit.")
}

func (q *request) method(f func() error, allowed ...string) error {
	if !slices.Contains(allowed, q.r.Method) {
		q.w.Header().Set("Allow", strings.Join(allowed, ", "))
		return fail(http.StatusMethodNotAllowed, "Only %s is possible here.", strings.Join(allowed, " or "))
	}
	return f()
}

// need refuses a request whose sender may not do an action.
func (q *request) need(a Action) error {
	actor, err := q.s.opts.Authorize(q.r, a)
	if err == nil && actor.Name == "" {
		err = errors.New("an actor without a name")
	}
	level := slog.LevelWarn
	if errors.Is(err, ErrUnauthenticated) {
		level = slog.LevelDebug // a browser's first request has no password
	}
	if err != nil && q.r.Context().Err() == nil {
		q.s.opts.Logger.Log(q.r.Context(), level, "outbox admin: refused", "action", a, "err", err)
	}
	switch {
	case err == nil:
		q.actor, q.may[a] = actor, true
		return nil
	case errors.Is(err, errBusy):
		return fail(http.StatusServiceUnavailable, "Too many are signing in. Try again.")
	case errors.Is(err, ErrUnauthenticated):
		if errors.Is(err, errBasic) {
			q.w.Header().Set("WWW-Authenticate", realm)
		}
		return fail(http.StatusUnauthorized, "Sign in to see this.")
	}
	return fail(http.StatusForbidden, "You may not do this (%s).", a)
}

// can reports whether a page may show a button.
func (q *request) can(a Action) bool {
	may, asked := q.may[a]
	if !asked {
		actor, err := q.s.opts.Authorize(q.r, a)
		may = err == nil && actor.Name != ""
		q.may[a] = may
	}
	return may
}

// see redirects the browser, relative to the root of the pages. http.Redirect would be wrong under
// a prefix.
func (q *request) see(target string) error {
	q.w.Header().Set("Location", q.up+target)
	q.w.WriteHeader(http.StatusSeeOther)
	return nil
}
