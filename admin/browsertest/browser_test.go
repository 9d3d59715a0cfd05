package browsertest_test

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
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
	"github.com/gorm-outbox/outbox/testutil"
)

// browser opens a page of a new browser. Whatever the browser complains of, or asks another origin for, fails the test.
func browser(t *testing.T, server *httptest.Server) context.Context {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("chromium is not installed")
		}
		t.Skip("chromium is not installed")
	}
	opts := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.NoSandbox,
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true), chromedp.WSURLReadTimeout(time.Minute))
	ctx, cancel := chromedp.NewExecAllocator(t.Context(), opts...)
	t.Cleanup(cancel)
	ctx, cancel = context.WithTimeout(ctx, 2*time.Minute)
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
			if !strings.HasSuffix(e.Entry.URL, "/nowhere") { // which tests ask for, to see a 404
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
	first  *outbox.TaskModel // that failed
}

func open(t *testing.T) *shop {
	t.Helper()
	s := &shop{plugin: outbox.New(outbox.Options{Logger: slog.New(slog.DiscardHandler)})}
	s.plugin.Handle("mail.send", func(context.Context, outbox.Args) error {
		if s.broken.Load() {
			return errors.New("dial tcp: timeout")
		}
		return nil
	})
	s.db = testutil.SQLite(t)
	db := s.db
	if err := errors.Join(db.Use(s.plugin), s.plugin.Migrate(t.Context())); err != nil {
		t.Fatal(err)
	}
	pages, err := admin.New(s.plugin, admin.Options{Authorize: func(*http.Request, admin.Action) (admin.Actor, error) {
		return admin.Actor{Name: "alice"}, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	s.broken.Store(true)
	if s.first, err = outbox.Create(db, "mail.send", nil); err != nil {
		t.Fatal(err)
	}
	s.run(t)
	s.broken.Store(false)
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
	if err := chromedp.Run(ctx, actions...); err != nil {
		t.Fatal(err)
	}
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

// TestByKeyboard is an operator's night: find the failed task, read its error, re-run it with a reason, see it succeed, find
// it in the audit.
func TestByKeyboard(t *testing.T) {
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

// TestLiveRefreshKeepsWhatIsTyped waits for a refresh, seen by a new task that is counted, and looks at the page then.
func TestLiveRefreshKeepsWhatIsTyped(t *testing.T) {
	s := open(t)
	ctx := browser(t, s.Server)
	run(t, ctx, chromedp.Navigate(s.URL+"/ops/tasks?state=failed"), chromedp.WaitVisible("tbody tr"),
		chromedp.Click("#more > summary", chromedp.ByQuery), chromedp.Click(`input[name="pick"]`, chromedp.ByQuery),
		chromedp.SendKeys(`#bulk input[name="reason"]`, "half a sen", chromedp.ByQuery))
	s.broken.Store(true)
	if _, err := outbox.Rerun(s.db, s.first.ID); err != nil {
		t.Fatal(err)
	}
	s.run(t)
	kept := map[string]bool{}
	run(t, ctx, chromedp.WaitVisible("#banner a"), chromedp.WaitVisible("tr.gone"), chromedp.Evaluate(`({
		tick: document.querySelector("input[name=pick]").checked,
		details: document.querySelector("#more").open,
		text: document.querySelector("#bulk input[name=reason]").value === "half a sen",
		focus: document.activeElement === document.querySelector("#bulk input[name=reason]"),
		rows: document.querySelectorAll("tbody tr").length === 1,
	})`, &kept))
	for what, ok := range kept {
		if !ok {
			t.Errorf("the refresh has changed the %s", what)
		}
	}
	if len(kept) != 5 {
		t.Errorf("only %d answers", len(kept))
	}
}

// TestNarrow looks at every page at the width of a small phone: none may scroll sideways.
func TestNarrow(t *testing.T) {
	s := open(t)
	ctx := browser(t, s.Server)
	for _, page := range []string{"", "tasks", "tasks?state=failed", "tasks/" + url.PathEscape(s.first.ID), "functions", "processes", "audit"} {
		var wide int
		run(t, ctx, chromedp.EmulateViewport(320, 640), chromedp.Navigate(s.URL+"/ops/"+page), chromedp.WaitReady("#main"),
			chromedp.Evaluate("document.documentElement.scrollWidth", &wide))
		if wide > 320 {
			t.Errorf("%s is %d pixels wide", page, wide)
		}
	}
}
