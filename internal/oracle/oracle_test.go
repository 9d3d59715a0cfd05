package oracle_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
	"github.com/gorm-outbox/outbox/internal/oracle"
)

// fixture is a database with tables, and an oracle.
type fixture struct {
	t      *testing.T
	db     *gorm.DB
	plugin *outbox.Plugin
	o      *oracle.Oracle
}

func eachDB(t *testing.T, test func(t *testing.T, f *fixture)) {
	t.Helper()
	for _, d := range dbtest.Databases {
		t.Run(d.Name, func(t *testing.T) {
			db, runs := d.Open(t), (*gorm.DB)(nil)
			if d.Name == "sqlite" {
				runs = d.Open(t) // else a transactional handler's run would wait for the handler's own transaction
			}
			o, err := oracle.New(db, runs)
			if err != nil {
				t.Fatal(err)
			}
			f := &fixture{t: t, db: db, o: o}
			f.plugin = outbox.New(outbox.Options{Logger: slog.New(slog.DiscardHandler)})
			f.plugin.Handle("plain", func(ctx context.Context) error { return o.Ran(ctx) })
			f.plugin.Handle("fails", func(ctx context.Context) error { return errors.Join(o.Ran(ctx), errors.New("no")) })
			f.plugin.Handle("tx", func(ctx context.Context, tx *gorm.DB) error { return errors.Join(o.Ran(ctx), o.Did(ctx, tx)) })
			f.plugin.Handle("tx.fails", func(ctx context.Context, tx *gorm.DB) error {
				return errors.Join(o.Ran(ctx), o.Did(ctx, tx), errors.New("no"))
			})
			if err := errors.Join(db.Use(f.plugin), f.plugin.Migrate(t.Context()), o.Migrate(t.Context())); err != nil {
				t.Fatal(err)
			}
			test(t, f)
		})
	}
}

func (f *fixture) check(q oracle.Question) []oracle.Violation {
	f.t.Helper()
	v, err := f.o.Check(f.t.Context(), q)
	if err != nil {
		f.t.Fatal(err)
	}
	return v
}

func (f *fixture) insert(row any) {
	f.t.Helper()
	db := f.db
	if err := db.Create(row).Error; err != nil {
		f.t.Fatal(err)
	}
}

// ran runs a task of a path to its end.
func (f *fixture) ran(path string, kind oracle.Kind) oracle.Expect {
	f.t.Helper()
	task, err := outbox.Create(f.db, path, nil)
	if err != nil {
		f.t.Fatal(err)
	}
	if n, err := f.plugin.RunDue(f.t.Context()); n != 1 || err != nil {
		f.t.Fatalf("%d ran, %v", n, err)
	}
	return oracle.Created(task, kind, oracle.Committed)
}

func TestCleanStateHasNoViolation(t *testing.T) {
	eachDB(t, func(t *testing.T, f *fixture) {
		var created []oracle.Expect
		for _, c := range []struct {
			path string
			kind oracle.Kind
		}{{"plain", oracle.Ordinary}, {"fails", oracle.Ordinary}, {"tx", oracle.Transactional}, {"tx.fails", oracle.Transactional}} {
			created = append(created, f.ran(c.path, c.kind))
		}
		later, err := outbox.Create(f.db, "plain", nil, outbox.StartAfter(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		gone, err := outbox.Create(f.db, "plain", nil, outbox.StartAfter(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		var dropped *outbox.TaskModel
		_ = f.db.Transaction(func(tx *gorm.DB) error {
			dropped, err = outbox.Create(tx, "plain", nil)
			return errors.Join(errors.New("roll back"), err)
		})
		again, err := outbox.Rerun(f.db, created[1].Task)
		if err := errors.Join(err, outbox.Cancel(f.db, gone.ID)); err != nil {
			t.Fatal(err)
		}
		created = append(created,
			oracle.Created(later, oracle.Ordinary, oracle.Committed), oracle.Created(gone, oracle.Ordinary, oracle.Unknown),
			oracle.Created(dropped, oracle.Ordinary, oracle.RolledBack), oracle.Created(again, oracle.Ordinary, oracle.Committed),
			oracle.Expect{Task: "never", Kind: oracle.Ordinary, Fate: oracle.Unknown})
		for range 2 {
			for _, v := range f.check(oracle.Question{Created: created, All: true}) {
				t.Error(v)
			}
			if _, err := f.plugin.RunDue(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		for _, v := range f.check(oracle.Question{Created: created, All: true, Rest: true, Stopped: true}) {
			t.Error(v)
		}
	})
}

// Each case breaks one thing by hand; the oracle must name the invariant, and tell the story.
func TestViolationIsFound(t *testing.T) {
	now := time.Now().UTC().Truncate(time.Millisecond)
	runAt := func(e oracle.Expect, attempt int, version int64, at time.Time) *oracle.Run {
		return &oracle.Run{Task: e.Task, Attempt: attempt, Version: version, PID: 4711, Due: now.Add(-time.Hour), At: at}
	}
	one := func(e oracle.Expect) oracle.Question { return oracle.Question{Created: []oracle.Expect{e}} }
	for _, tt := range []struct {
		name  string
		want  string // invariants, each once
		story string // is part of the story
		wreck func(t *testing.T, f *fixture, runs func(any)) oracle.Question
	}{
		{"committed, but nowhere", "L", "neither a task nor in history", func(t *testing.T, f *fixture, runs func(any)) oracle.Question {
			e := f.ran("plain", oracle.Ordinary)
			f.db.Where("id = ?", e.Task).Delete(&outbox.HistoryModel{})
			return one(e)
		}},
		{"success, but never ran", "L", "finished: ", func(t *testing.T, f *fixture, runs func(any)) oracle.Question {
			e := f.ran("plain", oracle.Ordinary)
			if err := f.o.Forget(t.Context(), []string{e.Task}); err != nil {
				t.Fatal(err)
			}
			return one(e)
		}},
		{"rolled back, but stored", "P", "now a task", func(t *testing.T, f *fixture, runs func(any)) oracle.Question {
			task, err := outbox.Create(f.db, "plain", nil)
			if err != nil {
				t.Fatal(err)
			}
			return one(oracle.Created(task, oracle.Ordinary, oracle.RolledBack))
		}},
		{"rolled back, but ran", "P", "pid 4711", func(t *testing.T, f *fixture, runs func(any)) oracle.Question {
			e := oracle.Expect{Task: "gone", Fate: oracle.RolledBack}
			runs(runAt(e, 1, 2, now))
			return one(e)
		}},
		{"unknown whether committed, not stored, but ran", "P", "pid 4711", func(t *testing.T, f *fixture, runs func(any)) oracle.Question {
			e := oracle.Expect{Task: "gone", Fate: oracle.Unknown}
			runs(runAt(e, 1, 2, now))
			return one(e)
		}},
		{"created by nobody", "P", "pid 4711", func(t *testing.T, f *fixture, runs func(any)) oracle.Question {
			runs(runAt(oracle.Expect{Task: "stray"}, 1, 2, now))
			return oracle.Question{All: true}
		}},
		{"two effects", "E", "effect: attempt 1", func(t *testing.T, f *fixture, runs func(any)) oracle.Question {
			e := f.ran("tx", oracle.Transactional)
			var first oracle.Effect
			if err := f.db.Take(&first, "task = ?", e.Task).Error; err != nil {
				t.Fatal(err)
			}
			first.Seq = 0
			f.insert(&first)
			return one(e)
		}},
		{"success without an effect", "E", "success", func(t *testing.T, f *fixture, runs func(any)) oracle.Question {
			e := f.ran("tx", oracle.Transactional)
			f.db.Where("task = ?", e.Task).Delete(&oracle.Effect{})
			return one(e)
		}},
		{"an error with an effect", "E", "failed", func(t *testing.T, f *fixture, runs func(any)) oracle.Question {
			e := f.ran("tx.fails", oracle.Transactional)
			f.insert(&oracle.Effect{Task: e.Task, Attempt: 1, Version: 2, At: now})
			return one(e)
		}},
		{"an effect of what is still a task", "E", "now a task", func(t *testing.T, f *fixture, runs func(any)) oracle.Question {
			task, err := outbox.Create(f.db, "tx", nil)
			if err != nil {
				t.Fatal(err)
			}
			f.insert(&oracle.Effect{Task: task.ID, Attempt: 1, Version: 2, At: now})
			return one(oracle.Created(task, oracle.Transactional, oracle.Committed))
		}},
		{"more runs than allowed", "N", "attempt 2, version 1", func(t *testing.T, f *fixture, runs func(any)) oracle.Question {
			e := f.ran("plain", oracle.Ordinary)
			runs(runAt(e, 2, 1, time.Now()))
			return one(e)
		}},
		{"more attempts in history than allowed", "N", "attempt 3", func(t *testing.T, f *fixture, runs func(any)) oracle.Question {
			e := f.ran("fails", oracle.Ordinary)
			f.db.Model(&outbox.HistoryModel{}).Where("id = ?", e.Task).Updates(map[string]any{"attempt": 3, "uncounted": 1})
			return one(e)
		}},
		{"one attempt twice", "N", "attempt 1, version 2", func(t *testing.T, f *fixture, runs func(any)) oracle.Question {
			e := f.ran("plain", oracle.Idempotent)
			runs(runAt(e, 1, 2, time.Now()))
			return one(e)
		}},
		{"in history and a task", "F", "now a task", func(t *testing.T, f *fixture, runs func(any)) oracle.Question {
			e := f.ran("plain", oracle.Ordinary)
			f.insert(&outbox.TaskModel{ID: e.Task, Func: "plain", Args: outbox.JSON("{}"), Queue: "q", State: outbox.StatePending, RunAt: now, CreatedAt: now})
			return one(e)
		}},
		{"ran after its end", "F", "version 9", func(t *testing.T, f *fixture, runs func(any)) oracle.Question {
			e := f.ran("plain", oracle.Idempotent)
			runs(runAt(e, 2, 9, time.Now()))
			return one(e)
		}},
		{"the effect of a lost claim", "F", "version 1", func(t *testing.T, f *fixture, runs func(any)) oracle.Question {
			e := f.ran("tx", oracle.Transactional)
			f.db.Model(&oracle.Effect{}).Where("task = ?", e.Task).Update("version", 1)
			return one(e)
		}},
		{"history that changed", "F", "other words", func(t *testing.T, f *fixture, runs func(any)) oracle.Question {
			e := f.ran("fails", oracle.Ordinary)
			if v := f.check(one(e)); len(v) > 0 {
				t.Fatal(v)
			}
			f.db.Model(&outbox.HistoryModel{}).Where("id = ?", e.Task).Update("error", "other words")
			return one(e)
		}},
		{"a run before the start time of its claim", "T", "due ", func(t *testing.T, f *fixture, runs func(any)) oracle.Question {
			e := f.ran("fails", oracle.Ordinary)
			e.MaxAttempts = 2
			r := runAt(e, 2, 1, now)
			r.Due = now.Add(time.Millisecond)
			runs(r)
			return one(e)
		}},
		{"a run before the start time that was asked for", "T", "not before", func(t *testing.T, f *fixture, runs func(any)) oracle.Question {
			e := f.ran("plain", oracle.Ordinary)
			e.NotBefore = time.Now().Add(time.Hour)
			return one(e)
		}},
		{"claimed before its start time", "T", "last claimed", func(t *testing.T, f *fixture, runs func(any)) oracle.Question {
			e := f.ran("plain", oracle.Ordinary)
			f.db.Model(&outbox.HistoryModel{}).Where("id = ?", e.Task).Update("run_at", time.Now().Add(time.Hour))
			return one(e)
		}},
		{"still running", "H", "owner \"somebody\"", func(t *testing.T, f *fixture, runs func(any)) oracle.Question {
			id := "somebody"
			task := outbox.TaskModel{ID: "r", Func: "plain", Args: outbox.JSON("{}"), Queue: "q", State: outbox.StateRunning, ProcessID: &id, RunAt: now, CreatedAt: now}
			f.insert(&task)
			return oracle.Question{Created: []oracle.Expect{oracle.Created(&task, oracle.Ordinary, oracle.Committed)}, Rest: true}
		}},
		{"still due", "H", "pending", func(t *testing.T, f *fixture, runs func(any)) oracle.Question {
			task, err := outbox.Create(f.db, "plain", nil)
			if err != nil {
				t.Fatal(err)
			}
			return oracle.Question{Created: []oracle.Expect{oracle.Created(task, oracle.Ordinary, oracle.Committed)}, Rest: true}
		}},
		{"a process row is left", "H", "", func(t *testing.T, f *fixture, runs func(any)) oracle.Question {
			f.insert(&outbox.ProcessModel{ID: "p", Host: "h", Functions: outbox.JSON("[]"), StartedAt: now, BeatAt: now})
			return oracle.Question{Stopped: true}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			eachDB(t, func(t *testing.T, f *fixture) {
				q := tt.wreck(t, f, func(r any) {
					if err := f.o.Insert(r.(*oracle.Run)); err != nil {
						t.Fatal(err)
					}
				})
				found, stories := "", ""
				for _, v := range f.check(q) {
					found += string(v.Invariant)
					stories += fmt.Sprintln(v)
				}
				if found != tt.want {
					t.Errorf("violations of %q, want %q\n%s", found, tt.want, stories)
				}
				if !strings.Contains(stories, tt.story) {
					t.Errorf("the story does not tell %q:\n%s", tt.story, stories)
				}
			})
		})
	}
}

func TestOutsideOfAHandler(t *testing.T) {
	eachDB(t, func(t *testing.T, f *fixture) {
		if f.o.Ran(t.Context()) == nil || f.o.Did(t.Context(), f.db) == nil {
			t.Error("recorded without a task")
		}
	})
}

func TestUnreadableDatabaseIsAnError(t *testing.T) {
	eachDB(t, func(t *testing.T, f *fixture) {
		if err := f.db.Migrator().DropTable(&oracle.Effect{}); err != nil {
			t.Fatal(err)
		}
		if _, err := f.o.Check(t.Context(), oracle.Question{All: true}); err == nil {
			t.Error("no error")
		}
	})
}
