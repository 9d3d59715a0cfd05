package outbox_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
)

type greeting struct {
	Name string `json:"name"`
	N    int64  `json:"n,omitempty"`
}

// quick are options whose retries come at once.
func quick(hooks ...outbox.Hooks) outbox.Options {
	return outbox.Options{Scan: "@every 20ms", Backoff: func(int) time.Duration { return 0 }, Hooks: hooks}
}

func TestOrdinaryHandler(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		fail := func(format string, args ...any) error { return fmt.Errorf(format, args...) }
		p := dbtest.Install(t, db, quick(), func(p *outbox.Plugin) {
			p.Handle("plain", func(context.Context) error { return nil })
			p.Handle("struct", func(_ context.Context, g greeting) error {
				if g != (greeting{"Ann", 9007199254740993}) {
					return fail("got %+v", g)
				}
				return nil
			})
			p.Handle("pointer", func(_ context.Context, g *greeting) (string, error) { return "hello " + g.Name, nil })
			p.Handle("args", func(_ context.Context, a outbox.Args) (map[string]any, error) { return a, nil })
			p.Handle("nothing", func(context.Context) (*greeting, error) { return nil, nil })
			p.Handle("task", func(ctx context.Context) (string, error) {
				task, ok := outbox.TaskFrom(ctx)
				if !ok || task.State != outbox.StateRunning || task.Attempt != 1 || task.ProcessID == nil {
					return "", fail("task %+v, %v", task, ok)
				}
				return task.ID, nil
			})
		})
		dbtest.Start(t, p)
		ann := greeting{"Ann", 9007199254740993}
		for _, tt := range []struct {
			path   string
			args   any
			result string
		}{
			{"plain", nil, ""},
			{"struct", ann, ""},
			{"pointer", ann, `"hello Ann"`},
			{"args", outbox.Args{"n": json.Number("12345678901234567890")}, `{"n":12345678901234567890}`},
			{"nothing", nil, ""},
			{"task", nil, "its own id"},
		} {
			t.Run(tt.path+" succeeds", func(t *testing.T) {
				task := dbtest.Create(t, db, tt.path, tt.args)
				past := dbtest.Ended(t, db, task.ID)
				want := tt.result
				if want == "its own id" {
					want = `"` + task.ID + `"`
				}
				if past.Status != outbox.StatusSuccess || past.Reason != outbox.ReasonNone || past.Error != nil || past.Result.String() != want {
					t.Errorf("status %s, reason %q, error %s, result %s; want success and %s", past.Status, past.Reason, text(past.Error), past.Result, want)
				}
				if past.StartedAt == nil || past.Attempt != 1 || past.FinishedAt.Before(past.CreatedAt) {
					t.Errorf("started %v, attempt %d, created %v, finished %v", past.StartedAt, past.Attempt, past.CreatedAt, past.FinishedAt)
				}
			})
		}
		if n := dbtest.Count(t, db, &outbox.TaskModel{}); n != 0 {
			t.Errorf("%d tasks are left", n)
		}
	})
}

func text(s *string) string {
	if s == nil {
		return "none"
	}
	return *s
}

type panickyJSON struct{}

func (panickyJSON) MarshalJSON() ([]byte, error) { panic("cannot be encoded") }

func TestBadResultKeepsSuccess(t *testing.T) {
	results := map[string]any{
		"too large":                strings.Repeat("x", 70<<10),
		"not encodable":            func() {},
		"with a NUL":               "a\x00b",
		"too deep":                 json.RawMessage(strings.Repeat("[", 40) + strings.Repeat("]", 40)),
		"whose encoding panics":    panickyJSON{},
		"with half of a surrogate": json.RawMessage(`"\ud800"`),
	}
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		p := dbtest.Install(t, db, quick(), func(p *outbox.Plugin) {
			p.Handle("result", func(_ context.Context, g greeting) (any, error) { return results[g.Name], nil })
			p.Handle("result.tx", func(_ context.Context, tx *gorm.DB, g greeting) (any, error) { return results[g.Name], nil })
		})
		dbtest.Start(t, p)
		for name := range results {
			for _, path := range []string{"result", "result.tx"} {
				t.Run(path+" "+name, func(t *testing.T) {
					past := dbtest.Ended(t, db, dbtest.Create(t, db, path, greeting{Name: name}).ID)
					if past.Status != outbox.StatusSuccess || past.Reason != outbox.ReasonBadResult || past.Error == nil || past.Result != nil {
						t.Errorf("status %s, reason %q, error %s, result %.50s", past.Status, past.Reason, text(past.Error), past.Result)
					}
				})
			}
		}
	})
}

type rudeError struct{}

func (rudeError) Error() string { panic("no text") }

func TestFailingHandler(t *testing.T) {
	errBoom := errors.New("boom")
	var noPath *fs.PathError // a nil pointer in a non-nil error, whose Error and Unwrap panic
	deep := func() { panic("deep") }
	for _, tt := range []struct {
		name   string
		fail   func() error
		reason outbox.Reason
		text   string
		runs   int // of two attempts
	}{
		{"plain error", func() error { return errBoom }, outbox.ReasonFailed, "boom", 2},
		{"error without text", func() error { return errors.New("") }, outbox.ReasonFailed, "without a text", 2},
		{"permanent error", func() error { return outbox.Permanent(errBoom) }, outbox.ReasonPermanent, "boom", 1},
		{"wrapped permanent error", func() error { return fmt.Errorf("wrapped: %w", outbox.Permanent(errBoom)) }, outbox.ReasonPermanent, "wrapped: boom", 1},
		{"panic", func() error { deep(); return nil }, outbox.ReasonPanic, "deep", 2},
		{"panic with an error", func() error { panic(errBoom) }, outbox.ReasonPanic, "boom", 2},
		{"panic with a rude error", func() error { panic(rudeError{}) }, outbox.ReasonPanic, "rudeError", 2},
		{"panic with nil", func() error { panic(nil) }, outbox.ReasonPanic, "panic: nil", 2},
		{"error whose text panics", func() error { return rudeError{} }, outbox.ReasonFailed, "rudeError", 2},
		{"nil pointer as an error", func() error { return noPath }, outbox.ReasonFailed, "PathError", 2},
		{"wrapped nil pointer as an error", func() error { return fmt.Errorf("open: %w", error(noPath)) }, outbox.ReasonFailed, "", 2},
		{"Goexit", func() error { runtime.Goexit(); return nil }, outbox.ReasonGoexit, "Goexit", 2},
		{"text with NUL", func() error { return errors.New("a\x00b") }, outbox.ReasonFailed, "a\uFFFDb", 2},
		{"text that is not UTF-8", func() error { return errors.New("a\xffb") }, outbox.ReasonFailed, "a\uFFFDb", 2},
		{"text of 70 kB", func() error { return errors.New(strings.Repeat("ä", 35<<10)) }, outbox.ReasonFailed, "(cut)", 2},
		{"panic text of 70 kB with NUL", func() error { panic(strings.Repeat("ä\x00", 35<<10)) }, outbox.ReasonPanic, "(cut)", 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
				p := dbtest.Install(t, db, quick(), func(p *outbox.Plugin) {
					p.Handle("fail", func(context.Context) error { return tt.fail() })
					p.Handle("fail.tx", func(_ context.Context, tx *gorm.DB) error { return tt.fail() })
					p.Handle("fine", func(context.Context) error { return nil })
				})
				dbtest.Start(t, p)
				for _, path := range []string{"fail", "fail.tx"} {
					past := dbtest.Ended(t, db, dbtest.Create(t, db, path, nil, outbox.MaxAttempts(2)).ID)
					got := text(past.Error)
					if past.Status != outbox.StatusError || past.Reason != tt.reason || past.Attempt != tt.runs || !strings.Contains(got, tt.text) {
						t.Errorf("%s: status %s, reason %s, attempt %d, error %.200q; want error, %s, %d, %q", path, past.Status, past.Reason, past.Attempt, got, tt.reason, tt.runs, tt.text)
					}
					if len(got) > 64<<10 || !utf8.ValidString(got) {
						t.Errorf("%s: error of %d bytes, valid %v", path, len(got), utf8.ValidString(got))
					}
					if len(past.Errors) != tt.runs-1 {
						t.Errorf("%s: %d attempts are recorded as failed before the last, want %d: %+v", path, len(past.Errors), tt.runs-1, past.Errors)
					} else if tt.runs == 2 && (past.Errors[0].Attempt != 1 || past.Errors[0].Reason != tt.reason || past.Errors[0].At.IsZero() || len(past.Errors[0].Error) > 4<<10) {
						t.Errorf("%s: first attempt recorded as %+v", path, past.Errors[0])
					}
				}
				if past := dbtest.Ended(t, db, dbtest.Create(t, db, "fine", nil).ID); past.Status != outbox.StatusSuccess {
					t.Errorf("the next task: %+v", past)
				}
			})
		})
	}
}

func TestRetries(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		var mu sync.Mutex
		var asked []int
		opts := quick()
		opts.Backoff = func(attempt int) time.Duration {
			mu.Lock()
			defer mu.Unlock()
			asked = append(asked, attempt)
			return time.Millisecond
		}
		p := dbtest.Install(t, db, opts, func(p *outbox.Plugin) {
			p.Handle("thrice", func(ctx context.Context) error {
				if task, _ := outbox.TaskFrom(ctx); task.Attempt < 3 {
					return fmt.Errorf("attempt %d", task.Attempt)
				}
				return nil
			})
			p.Handle("always", func(ctx context.Context) error { return errors.New("never works") })
			p.Handle("snooze", func(ctx context.Context) error {
				if task, _ := outbox.TaskFrom(ctx); task.Uncounted < 3 {
					return fmt.Errorf("later: %w", outbox.Snooze(time.Millisecond))
				}
				return nil
			})
		})
		dbtest.Start(t, p)

		t.Run("until it works", func(t *testing.T) {
			past := dbtest.Ended(t, db, dbtest.Create(t, db, "thrice", nil, outbox.MaxAttempts(5)).ID)
			if past.Status != outbox.StatusSuccess || past.Attempt != 3 || len(past.Errors) != 2 || past.Errors[1].Error != "attempt 2" {
				t.Errorf("%+v", past)
			}
			mu.Lock()
			defer mu.Unlock()
			if fmt.Sprint(asked) != "[1 2]" {
				t.Errorf("backoff was asked for %v, want [1 2]", asked)
			}
		})
		t.Run("not by default", func(t *testing.T) {
			past := dbtest.Ended(t, db, dbtest.Create(t, db, "always", nil).ID)
			if past.Status != outbox.StatusError || past.Attempt != 1 || len(past.Errors) != 0 {
				t.Errorf("%+v", past)
			}
		})
		t.Run("a long list keeps the first and the latest", func(t *testing.T) {
			past := dbtest.Ended(t, db, dbtest.Create(t, db, "always", nil, outbox.MaxAttempts(30)).ID)
			if past.Attempt != 30 || len(past.Errors) != 20 || past.Errors[0].Attempt != 1 || past.Errors[19].Attempt != 29 {
				t.Errorf("attempt %d, %d kept: %+v", past.Attempt, len(past.Errors), past.Errors)
			}
		})
		t.Run("a snooze does not count", func(t *testing.T) {
			past := dbtest.Ended(t, db, dbtest.Create(t, db, "snooze", nil).ID)
			if past.Status != outbox.StatusSuccess || past.Attempt != 4 || past.Uncounted != 3 || len(past.Errors) != 0 {
				t.Errorf("%+v", past)
			}
		})
	})
}

// Without a scan a retry must be found by the dispatcher that put it back.
func TestRetryDoesNotWaitForAScan(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		opts := quick()
		opts.Scan, opts.Backoff = "@every 1h", func(int) time.Duration { return 20 * time.Millisecond }
		p := dbtest.Install(t, db, opts, func(p *outbox.Plugin) {
			p.Handle("twice", func(ctx context.Context) error {
				if task, _ := outbox.TaskFrom(ctx); task.Attempt < 2 {
					return errors.New("once more")
				}
				return nil
			})
		})
		dbtest.Start(t, p)
		if past := dbtest.Ended(t, db, dbtest.Create(t, db, "twice", nil, outbox.MaxAttempts(2)).ID); past.Status != outbox.StatusSuccess {
			t.Errorf("%+v", past)
		}
	})
}

type rudeArgs struct {
	N int `json:"n"`
}

func (a rudeArgs) Validate() error {
	if a.N > 1 {
		panic("too many")
	}
	return nil
}

func TestBadRowHarmsOnlyItself(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		p := dbtest.Install(t, db, quick(), func(p *outbox.Plugin) {
			p.Handle("greet", func(context.Context, greeting) error { return nil })
			p.Handle("rude", func(context.Context, rudeArgs) error { return nil })
		})
		edits := map[string]string{
			"arguments that are no object": `args = '[1]'`,
			"arguments of another type":    `args = '{"name":1}'`,
			"arguments with another key":   `args = '{"name":"x","other":1}'`,
		}
		if db.Name() == "sqlite" {
			edits["arguments that are not JSON"] = `args = 'x'`
			for _, column := range []string{"attempt", "uncounted", "crashes", "max_attempts", "timeout_ms", "version", "priority"} {
				edits["garbage in "+column] = column + " = 'garbage'"
			}
			edits["a number as the time"] = "run_at = 5"
			edits["bytes as the queue"] = "queue = x'ff00'"
			edits["bytes as the arguments"] = "args = x'ff00'"
		}
		bad := map[string]string{}
		good := []string{dbtest.Create(t, db, "greet", greeting{Name: "first"}).ID}
		for name, set := range edits {
			id := dbtest.Create(t, db, "greet", greeting{Name: "bad"}).ID
			if err := db.Exec("UPDATE outbox_tasks SET "+set+" WHERE id = ?", id).Error; err != nil {
				t.Fatal(err)
			}
			bad[name] = id
			good = append(good, dbtest.Create(t, db, "greet", greeting{Name: "good"}).ID)
		}
		bad["arguments whose check panics"] = dbtest.Create(t, db, "rude", rudeArgs{1}).ID
		if err := db.Exec(`UPDATE outbox_tasks SET args = '{"n":2}' WHERE func = 'rude'`).Error; err != nil {
			t.Fatal(err)
		}
		dbtest.Start(t, p)
		for _, id := range good {
			if past := dbtest.Ended(t, db, id); past.Status != outbox.StatusSuccess {
				t.Errorf("a good row: %+v", past)
			}
		}
		for name, id := range bad {
			t.Run(name, func(t *testing.T) {
				if name == "garbage in priority" || name == "bytes as the queue" {
					return // it is in no partition that could be claimed, and waits for a repair
				}
				var status, reason string
				dbtest.Eventually(t, "the bad row ends", func() bool {
					rows := db.Raw("SELECT status, reason FROM outbox_history WHERE id = ?", id).Row()
					return rows.Scan(&status, &reason) == nil
				})
				healed := name == "garbage in version" || name == "garbage in attempt" || name == "a number as the time"
				if reason != string(outbox.ReasonBadArgs) && !(healed && status == "success") {
					t.Errorf("%s, %s; want error, bad_args", status, reason)
				}
			})
		}
	})
}
