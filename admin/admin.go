// Package admin is the administrator's pages: an http.Handler that shows what waits, what runs,
// what failed and why, and lets those who may do something about it. Mount it under any prefix with
// http.StripPrefix:
//
//	pages, err := admin.New(plugin, admin.Options{Authorize: authorize})
//	mux.Handle("/admin/", http.StripPrefix("/admin", pages))
//
// Every request is asked of Options.Authorize, with the action that it needs; there is no default
// that lets anybody in. The pages are plain HTML with forms and work without JavaScript; beside
// them is a JSON API. See docs/admin.md.
package admin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/bridge"
	"github.com/gorm-outbox/outbox/internal/dialect"
)

// Action is what a request wants to do. Whoever may not is not shown the button, and refused all
// the same.
type Action string

const (
	View       Action = "view"       // every page and every list; without it nothing else is possible
	ViewArgs   Action = "view_args"  // see arguments and results, and search in arguments
	Rerun      Action = "rerun"      // make a new task from one that has ended
	EditArgs   Action = "edit_args"  // give a re-run other arguments; needs Rerun as well
	RunNow     Action = "run_now"    // make a waiting task due
	Reschedule Action = "reschedule" // give a waiting task another start time
	Cancel     Action = "cancel"     // end a waiting task
	Discard    Action = "discard"    // delete a failed task from history before its time
)

// Actor is who sends a request. The name goes into the audit.
type Actor struct{ Name string }

// ErrUnauthenticated, returned by Authorize, means that the request does not say who sends it: 401.
// Every other error means that the sender may not do it: 403. The errors' texts are not shown.
var ErrUnauthenticated = errors.New("admin: not authenticated")

// Options of the pages.
type Options struct {
	// Authorize says who sends a request, or refuses the action. It is required. It is asked with
	// View first, then with what the request wants to do, and for each button that a page may show;
	// so it should be quick. It must be safe for concurrent use.
	Authorize func(*http.Request, Action) (Actor, error)

	// Redact returns what may be shown of a task's arguments, a JSON object, or of its result; nil
	// shows nothing. Whatever shows or searches them goes through it. Error texts do not: they are
	// the handlers' own. Nil shows everything.
	Redact func(path string, args []byte) []byte

	// Title is the name at the top of each page. Empty means "Outbox".
	Title string

	// TrustedOrigins ("https://admin.example.com") may send forms although a proxy has rewritten
	// the Host.
	TrustedOrigins []string

	// QueryTimeout is how long one page may keep the database busy before it says so instead. Zero
	// means 5 s.
	QueryTimeout time.Duration

	// Logger gets errors of the database, which pages do not show. Nil means slog.Default().
	Logger *slog.Logger
}

// site is the handler.
type site struct {
	plugin *outbox.Plugin
	db     *gorm.DB
	reads  *gorm.DB // the same, past what the application does to its own queries
	d      dialect.Dialect
	inside func() bridge.Plugin // as it is now
	opts   Options
	cross  *http.CrossOriginProtection

	bulkLimit time.Duration // how long a change of many tasks goes on

	mu     sync.Mutex
	cached map[string]*cached
}

// New returns the pages of a plugin that db.Use has been called with. It fails without
// Options.Authorize. The handler is safe for concurrent use, and starts nothing.
func New(p *outbox.Plugin, opts Options) (http.Handler, error) {
	if p == nil {
		return nil, errors.New("admin: new: the plugin is nil")
	}
	if opts.Authorize == nil {
		return nil, errors.New("admin: new: Options.Authorize is nil: say who may do what; for a small team, BasicAuth does")
	}
	inside, err := bridge.Of(p)
	if err != nil {
		return nil, fmt.Errorf("admin: new: %w", err)
	}
	db := inside.DB
	reads, err := plainReads(db)
	if err != nil {
		return nil, fmt.Errorf("admin: new: %w", err)
	}
	opts.Title = cmp.Or(opts.Title, "Outbox")
	opts.QueryTimeout = cmp.Or(opts.QueryTimeout, 5*time.Second)
	opts.Logger = cmp.Or(opts.Logger, slog.Default())
	s := &site{plugin: p, db: db, reads: reads, d: inside.Store.Dialect, opts: opts, cross: http.NewCrossOriginProtection(), bulkLimit: bulkTimeout,
		inside: func() bridge.Plugin {
			if now, err := bridge.Of(p); err == nil {
				return now
			}
			return inside
		}, cached: map[string]*cached{}}
	for _, origin := range opts.TrustedOrigins {
		if err := s.cross.AddTrustedOrigin(origin); err != nil {
			return nil, fmt.Errorf("admin: new: TrustedOrigins: %w", err)
		}
	}
	return s, nil
}

// conn is the database for one request's changes.
func (s *site) conn(ctx context.Context) *gorm.DB { return s.db.WithContext(ctx) }

// read is the database for what a page shows.
func (s *site) read(ctx context.Context) *gorm.DB { return s.reads.WithContext(ctx) }

// now is the database's clock, which dates everything that the pages show.
func (s *site) now(ctx context.Context) (time.Time, error) {
	text, err := s.d.Clock(ctx, s.db.Statement.ConnPool)
	if err != nil {
		return time.Time{}, err
	}
	return dialect.ParseTime(text)
}
