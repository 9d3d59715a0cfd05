// Package admin is the administrator's pages: an http.Handler that shows which tasks wait, which
// run, and which have failed and why. Actors with permission can change tasks. Mount it under any
// prefix with http.StripPrefix:
//
//	pages, err := admin.New(plugin, admin.Options{Authorize: authorize})
//	mux.Handle("/admin/", http.StripPrefix("/admin", pages))
//
// The handler asks Options.Authorize about every request, with the action that it needs. There is
// no default that grants access. The pages are plain HTML with forms and work without JavaScript.
// The handler also serves a JSON API. See docs/admin.md.
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

// Action is an action for which a request needs permission. Pages do not show a button that the
// sender may not use. A request without permission is refused in any case.
type Action string

const (
	View       Action = "view"       // see pages and lists; every other action needs it, too
	ViewArgs   Action = "view_args"  // see arguments and results, and search in arguments
	Rerun      Action = "rerun"      // make a new task from one that has ended
	EditArgs   Action = "edit_args"  // give a re-run other arguments; needs Rerun as well
	RunNow     Action = "run_now"    // make a waiting task due
	Reschedule Action = "reschedule" // give a waiting task another start time
	Cancel     Action = "cancel"     // end a waiting task
	Discard    Action = "discard"    // delete a failed task from history before its time
)

// Actor is the sender of a request. The name is written to the audit.
type Actor struct{ Name string }

// ErrUnauthenticated, returned by Authorize, means that the request does not identify its sender:
// 401. Any other error means that the sender may not do the action: 403. The errors' texts are not
// shown.
var ErrUnauthenticated = errors.New("admin: not authenticated")

// Options are the options of the pages.
type Options struct {
	// Authorize returns the sender of a request, or an error that refuses the action. It is
	// required. The handler calls it with View first, then with the action of the request, and for
	// each button that a page may show. So it should be fast. It must be safe for concurrent use.
	Authorize func(*http.Request, Action) (Actor, error)

	// Redact returns the part of a task's arguments (a JSON object) or of its result that may be
	// shown; nil shows nothing. All pages, exports and searches use it. Error texts are not
	// redacted: they come from the handlers. A nil Redact shows everything.
	Redact func(path string, args []byte) []byte

	// Title is the name at the top of each page. Empty means "Outbox".
	Title string

	// TrustedOrigins are origins ("https://admin.example.com") whose forms are accepted although a
	// proxy has rewritten the Host.
	TrustedOrigins []string

	// QueryTimeout limits the time that one page may use the database. After it, the page shows an
	// error instead. Zero means 5 s.
	QueryTimeout time.Duration

	// Logger receives the database's errors, which pages do not show. Nil means slog.Default().
	Logger *slog.Logger
}

// site is the handler.
type site struct {
	plugin *outbox.Plugin
	db     *gorm.DB
	reads  *gorm.DB // the same connections, without the application's callbacks
	d      dialect.Dialect
	inside func() bridge.Plugin // the plugin as it is now
	opts   Options
	cross  *http.CrossOriginProtection

	bulkLimit time.Duration // how long a change of many tasks may take

	mu     sync.Mutex
	cached map[string]*cached
}

// New returns the pages of a plugin. db.Use must have been called with the plugin. New fails
// without Options.Authorize. The handler is safe for concurrent use and starts no goroutine.
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

// read is the database for the data that a page shows.
func (s *site) read(ctx context.Context) *gorm.DB { return s.reads.WithContext(ctx) }

// now is the time of the database's clock, from which all times on the pages are computed.
func (s *site) now(ctx context.Context) (time.Time, error) {
	text, err := s.d.Clock(ctx, s.db.Statement.ConnPool)
	if err != nil {
		return time.Time{}, err
	}
	return dialect.ParseTime(text)
}
