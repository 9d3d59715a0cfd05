package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"maragu.dev/goqite/jobs"

	"github.com/gorm-outbox/outbox"
)

func TestMain(m *testing.M) {
	if config := os.Getenv(childEnv); config != "" {
		if err := childMain(config); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// Every contestant works off a few tasks: one that loses a task, or cannot be started, is found
// here and not in a run of many minutes.
func TestContestants(t *testing.T) {
	b := testBench(t)
	n := 300
	entrants := []entrant{
		b.enterOurs("outbox", n, outbox.Options{Concurrency: 50}, conns),
		b.enterOurs("outbox with default options", n, outbox.Options{}, 0),
		b.enterBare(100, n),
		b.enterRiverPgx("River, its own driver", n, riverFast),
		b.enterRiverSQL("River, database sql", n, riverFast),
		b.enterGue("gue", n, 8),
		b.enterOursMySQL(onMariaDB, "outbox on MariaDB", n, outbox.Options{Concurrency: 50}, conns),
		b.enterOursMySQL(onMySQL, "outbox on MySQL", n, outbox.Options{Concurrency: 50}, conns),
		b.enterBareMySQL(100, n),
		b.enterOursSQLite("outbox on SQLite", n, outbox.Options{Concurrency: 50}, 0),
		b.enterOursSQLite("outbox on SQLite, one connection", n, outbox.Options{Concurrency: 50}, 1),
		b.enterBareSQLite(100, n),
		b.enterRiverSQLite("River on SQLite", n, riverFast),
		b.enterGoqite("goqite on SQLite", n, jobs.NewRunnerOpts{Limit: 50, PollInterval: time.Millisecond}),
	}
	a, err := b.enterAsynq(t.Context(), "asynq", n, asynq.Config{Concurrency: 50})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range append(entrants, a...) {
		t.Run(e.name, func(t *testing.T) {
			c, err := e.open(t.Context(), "smoke")
			if err != nil {
				t.Fatal(err)
			}
			defer c.close()
			for range 2 { // the second one finds what the first has left
				if _, err := workOff(t.Context(), c, e.n, 20*time.Second); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// Child processes work off a backlog together, and tell what they have run.
func TestChildren(t *testing.T) {
	b := testBench(t)
	dsn, err := b.pg.database(t.Context(), "children")
	if err != nil {
		t.Fatal(err)
	}
	o, err := openOursOn(t.Context(), dsn, outbox.Options{}, 4)
	if err != nil {
		t.Fatal(err)
	}
	defer o.close()
	if err := o.load(t.Context(), 300); err != nil {
		t.Fatal(err)
	}
	if _, err := together(t.Context(), o, 300, 2, job{Queue: "outbox", DSN: dsn, Slots: 20, Conns: 5, Times: true}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name     string
		dispatch dispatcher
	}{{"here", inProcess(o)}, {"elsewhere", elsewhere(o, job{Queue: "outbox", DSN: dsn, Conns: 5, Times: true})}} {
		w := watch{rate: 200, n: warm + 20}
		if l, err := w.fromCommit(t.Context(), o, c.dispatch); err != nil || len(l) != 20 || l.at(.99) > 2000 {
			t.Fatalf("%s: %v, %v", c.name, l, err)
		}
		if l, err := w.fromStart(t.Context(), o, c.dispatch, 200*time.Millisecond); err != nil || len(l) != 20 || l.at(.99) > 2000 {
			t.Fatalf("%s, later: %v, %v", c.name, l, err)
		}
	}
}

// A contestant that does less than it should must not get a rate.
func TestCheats(t *testing.T) {
	for _, test := range []struct {
		name  string
		cheat cheat
		want  string
	}{
		{"loses a task", cheat{runs: []int{0, 1, 1}}, "1 never ran and 1 ran more than once"},
		{"runs a task too often", cheat{runs: []int{0, 1, 2, 2}}, "ran more than once"},
		{"stops early", cheat{runs: []int{0, 1}}, "only 2 of 3"},
		{"leaves the database behind", cheat{runs: []int{0, 1, 2}, more: true}, "not all had finished"},
		{"finishes something else", cheat{runs: []int{0, 1, 2}, wrong: errors.New("2 instead of 3")}, "2 instead of 3"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := workOff(t.Context(), test.cheat, 3, 50*time.Millisecond)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("%v, want %q", err, test.want)
			}
		})
	}
}

type cheat struct {
	runs  []int
	more  bool
	wrong error
}

func (c cheat) load(context.Context, int) error { return nil }
func (c cheat) start(_ context.Context, ran func(int)) (func() error, error) {
	for _, i := range c.runs {
		ran(i)
	}
	return func() error { return nil }, nil
}
func (c cheat) unfinished(context.Context) (bool, error) { return c.more, nil }
func (c cheat) finished(context.Context, int) error      { return c.wrong }
func (c cheat) close() error                             { return nil }

func testBench(t *testing.T) *bench {
	t.Helper()
	h := &host{}
	t.Cleanup(h.close)
	return &bench{quick: true, rounds: 1, host: h, pg: &server{host: h}}
}
