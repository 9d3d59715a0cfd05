package browsertest_test

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/admin"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

// browser opens a page of a new browser. Whatever the browser complains of, or asks another origin
// for, fails the test; but for answers that are errors, of paths that end so.
func browser(t *testing.T, server *httptest.Server, errors ...string) context.Context {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("chromium is not installed")
		}
		t.Skip("chromium is not installed")
	}
	opts := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.NoSandbox,
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-features", "BackForwardCache,Translate"), chromedp.Flag("disable-component-update", true), chromedp.WSURLReadTimeout(time.Minute))
	ctx, cancel := chromedp.NewExecAllocator(t.Context(), opts...)
	t.Cleanup(cancel)
	ctx, cancel = context.WithTimeout(ctx, 5*time.Minute)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	var mu sync.Mutex
	var complaints []string
	chromedp.ListenTarget(ctx, func(event any) {
		mu.Lock()
		defer mu.Unlock()
		switch e := event.(type) {
		case *log.EventEntryAdded:
			if e.Entry.Source != log.SourceNetwork || !slices.ContainsFunc(errors, func(path string) bool { return strings.HasSuffix(e.Entry.URL, path) }) {
				complaints = append(complaints, e.Entry.Text)
			}
		case *runtime.EventExceptionThrown:
			complaints = append(complaints, e.ExceptionDetails.Error())
		case *network.EventRequestWillBeSent:
			if u := e.Request.URL; !strings.HasPrefix(u, server.URL+"/") && !strings.HasPrefix(u, "data:") {
				complaints = append(complaints, "a request to "+u)
			}
		}
	})
	t.Cleanup(func() {
		mu.Lock()
		defer mu.Unlock()
		for _, text := range complaints {
			t.Errorf("the browser says: %s", text)
		}
	})
	if err := chromedp.Run(ctx, log.Enable(), network.Enable()); err != nil {
		t.Fatal(err)
	}
	return ctx
}

type shop struct {
	*httptest.Server
	plugin *outbox.Plugin
	db     *gorm.DB
	broken atomic.Bool
	deny   atomic.Pointer[map[admin.Action]error]
	first  *outbox.TaskModel // that failed
}

// open is a shop with one failed task.
func open(t *testing.T) *shop {
	t.Helper()
	s := fresh(t)
	s.broken.Store(true)
	var err error
	if s.first, err = outbox.Create(s.db, "mail.send", nil); err != nil {
		t.Fatal(err)
	}
	s.run(t)
	s.broken.Store(false)
	return s
}

// fresh is a shop that has just been set up.
func fresh(t *testing.T) *shop {
	t.Helper()
	s := &shop{plugin: outbox.New(outbox.Options{Logger: slog.New(slog.DiscardHandler)})}
	s.plugin.Handle("mail.send", func(context.Context, outbox.Args) error {
		if s.broken.Load() {
			return errors.New("dial tcp: timeout")
		}
		return nil
	})
	s.db = testdb.SQLite(t)
	db := s.db
	if err := errors.Join(db.Use(s.plugin), s.plugin.Migrate(t.Context())); err != nil {
		t.Fatal(err)
	}
	pages, err := admin.New(s.plugin, admin.Options{Authorize: func(_ *http.Request, a admin.Action) (admin.Actor, error) {
		if deny := s.deny.Load(); deny != nil && (*deny)[a] != nil {
			return admin.Actor{}, (*deny)[a]
		}
		return admin.Actor{Name: "alice"}, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	s.Server = httptest.NewServer(http.StripPrefix("/ops", pages))
	t.Cleanup(s.Close)
	return s
}

func (s *shop) run(t *testing.T) {
	t.Helper()
	if _, err := s.plugin.RunDue(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func run(t *testing.T, ctx context.Context, actions ...chromedp.Action) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := chromedp.Run(ctx, actions...); err != nil {
		t.Fatal(err)
	}
}

func tabKey(t *testing.T, ctx context.Context) {
	t.Helper()
	run(t, ctx, chromedp.KeyEvent(kb.Tab))
}

// tab presses the tabulator until what has the focus satisfies a condition in JavaScript, of e.
func tab(t *testing.T, ctx context.Context, condition string) {
	t.Helper()
	for range 80 {
		found := false
		run(t, ctx, chromedp.KeyEvent(kb.Tab), chromedp.Evaluate("(e => "+condition+")(document.activeElement)", &found))
		if found {
			return
		}
	}
	t.Fatalf("the keyboard does not reach %s", condition)
}

// TestByKeyboard is an operator's night: find the failed task, read its error, re-run it with a
// reason, see it succeed, find it in the audit.
func TestByKeyboard(t *testing.T) {
	t.Parallel()
	s := open(t)
	ctx := browser(t, s.Server)
	var text string
	run(t, ctx, chromedp.Navigate(s.URL+"/ops/"), chromedp.WaitVisible("#trouble"))
	tab(t, ctx, `e.matches("a.card.failed")`)
	run(t, ctx, chromedp.KeyEvent(kb.Enter), chromedp.WaitVisible("#bulk tbody tr"))
	tab(t, ctx, `e.matches("tbody th a")`)
	run(t, ctx, chromedp.KeyEvent(kb.Enter), chromedp.WaitVisible("#err"), chromedp.Text("pre.err", &text))
	if text != "dial tcp: timeout" {
		t.Errorf("the error is %q", text)
	}
	tab(t, ctx, `e.name === "reason"`)
	run(t, ctx, chromedp.KeyEvent("smtp is back"))
	tab(t, ctx, `e.matches("button.main")`)
	run(t, ctx, chromedp.KeyEvent(kb.Enter), chromedp.WaitVisible(".notice"), chromedp.Text(".notice", &text))
	if text != "1 task re-run." {
		t.Errorf("the notice is %q", text)
	}
	s.run(t)
	run(t, ctx, chromedp.WaitVisible("h1 .state.done")) // the page refreshes by itself
	tab(t, ctx, `e.matches("nav a") && e.textContent === "Audit"`)
	run(t, ctx, chromedp.KeyEvent(kb.Enter), chromedp.WaitVisible("tbody tr"), chromedp.Text("tbody tr", &text))
	if !strings.Contains(text, "alice") || !strings.Contains(text, "smtp is back") || !strings.Contains(text, s.first.ID) {
		t.Errorf("the audit says %q", text)
	}
}
