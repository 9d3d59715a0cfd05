package testutil

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/bridge"
	"github.com/gorm-outbox/outbox/internal/dialect"
)

// RequireCreated ends the test unless the task table has an unfinished task with this path and
// these arguments. It returns the task; of several, the last one created. It reads through db, so
// with a transaction's handle it sees the tasks that the transaction has created.
//
// The arguments may be partial: each given key must exist with an equal JSON value, and other keys
// may have any value. Inner objects and arrays must be equal as a whole; numbers are compared by
// value, with every digit. Nil args match any arguments.
//
// The failure message shows the path's tasks and their differences, the number of tasks of other
// paths, and the number of tasks of this path that have ended: a task that has run is in history.
func RequireCreated(t testing.TB, db *gorm.DB, path string, args outbox.Args) *outbox.TaskModel {
	t.Helper()
	s := search(t, db, path, args)
	if len(s.matching) == 0 {
		t.Fatalf("testutil: no unfinished task %s\n%s", s.wanted(), s.instead(t))
	}
	return &s.matching[len(s.matching)-1]
}

// RequireNotCreated ends the test if the task table has an unfinished task with this path and these
// arguments, and shows these tasks. For db and args see [RequireCreated]. Nil args mean that the
// path must have no task at all.
func RequireNotCreated(t testing.TB, db *gorm.DB, path string, args outbox.Args) {
	t.Helper()
	s := search(t, db, path, args)
	if len(s.matching) > 0 {
		t.Fatalf("testutil: unfinished task %s\n%s", s.wanted(), list(s.matching, func(task outbox.TaskModel) string {
			return describe(task)
		}))
	}
}

// drainLimit is much longer than the tasks of any test take.
const drainLimit = time.Minute

// Drain runs all due tasks, and the tasks that become due by that. It calls Plugin.RunDue until no
// task is left to run. It returns the number of runs. Tasks that are due later need a [Clock]:
// advance it and drain again.
//
// The test fails, and continues, for each task that has ended as error in the meantime. An attempt
// that will be retried is not such an end. A test that expects an error calls Plugin.RunDue and
// reads the history. The test's log names parked tasks; no process has registered a handler for
// their path.
//
// Drain ends the test when the database fails, and when it takes longer than a minute. Call it
// after the transaction that creates the tasks: Drain ends the test while a transaction is open
// that has created tasks through the plugin. It also ends the test on a pool of go-txdb, which is
// one transaction. It cannot be called in a Cleanup function, because the test's context has ended
// then.
func Drain(t testing.TB, plugin *outbox.Plugin) int {
	t.Helper()
	inside, err := bridge.Of(plugin)
	db := inside.DB
	if err == nil {
		err = drainable(db)
	}
	if err != nil {
		t.Fatalf("testutil: drain: %v", err)
	}
	if inTransaction(plugin) {
		t.Fatalf("testutil: drain: a transaction that created tasks is still open, and nothing of it runs before its commit: " +
			"call Drain after the commit. A test that rolls everything back at its end can look at its tasks with RequireCreated, but not run them")
	}
	ctx, cancel := context.WithTimeout(t.Context(), drainLimit)
	defer cancel()
	db = plain(t, db).WithContext(ctx)
	var before []string
	if err := db.Model(&outbox.HistoryModel{}).Where("status = ?", outbox.StatusError).Pluck("id", &before).Error; err != nil {
		t.Fatalf("testutil: drain: read history: %v", err)
	}

	total := 0
	for n := -1; n != 0 && err == nil; {
		n, err = plugin.RunDue(ctx)
		total += n
	}

	// The report is also read after the minute is over, from a database that answers.
	telling, stop := dialect.Outlive(ctx)
	defer stop()
	db = db.WithContext(telling)
	var failed []outbox.HistoryModel
	if err := db.Where("status = ?", outbox.StatusError).Order("finished_at, id").Find(&failed).Error; err != nil {
		t.Errorf("testutil: drain: read history: %v", err)
	}
	for _, h := range failed {
		if !slices.Contains(before, h.ID) {
			t.Errorf("testutil: drain: %s ended as error (%s), task %s, arguments %s:\n%s",
				h.Func, h.Reason, h.ID, short(string(h.Args)), indent(errorOf(h)))
		}
	}
	var parked []outbox.TaskModel
	if err := db.Where("state = ?", outbox.StateParked).Order("id").Find(&parked).Error; err != nil {
		t.Errorf("testutil: drain: read tasks: %v", err)
	}
	if len(parked) > 0 {
		t.Logf("testutil: drain: parked, because no process has registered their function:\n%s",
			list(parked, func(task outbox.TaskModel) string { return task.Func + " " + describe(task) }))
	}
	switch {
	case ctx.Err() != nil:
		t.Fatalf("testutil: drain: not done after %d runs: a handler hangs, or tasks keep creating tasks that are due at once: %v\nunfinished: %s",
			total, err, counts(t, db, &outbox.TaskModel{}, "func", ""))
	case err != nil:
		t.Fatalf("testutil: drain: %v", err)
	}
	return total
}

func errorOf(h outbox.HistoryModel) string {
	if h.Error == nil {
		return "no error text"
	}
	return *h.Error
}

// found is the result of a search for tasks.
type found struct {
	db       *gorm.DB
	path     string
	args     outbox.Args    // as the test has given them
	want     map[string]any // as JSON
	tasks    []outbox.TaskModel
	matching []outbox.TaskModel
}

func search(t testing.TB, db *gorm.DB, path string, args outbox.Args) *found {
	t.Helper()
	if db.DryRun {
		t.Fatalf("testutil: look for %s: %v", path, outbox.ErrDryRun)
	}
	if db.Error != nil {
		t.Fatalf("testutil: look for %s: the *gorm.DB carries an error already: %v", path, db.Error)
	}
	raw, err := json.Marshal(args)
	if err != nil {
		t.Fatalf("testutil: look for %s: the arguments given are not JSON: %v", path, err)
	}
	s := &found{db: plain(t, db), path: path, args: args}
	if s.want, err = decode(raw); err != nil {
		t.Fatalf("testutil: look for %s: the arguments given: %v", path, err)
	}
	if err := s.db.Where("func = ?", path).Order("id").Find(&s.tasks).Error; err != nil {
		t.Fatalf("testutil: look for %s: %v", path, err)
	}
	for _, task := range s.tasks {
		if len(s.differences(task)) == 0 {
			s.matching = append(s.matching, task)
		}
	}
	return s
}

// differences returns the differences between a task's arguments and the wanted arguments.
func (s *found) differences(task outbox.TaskModel) []string {
	got, err := decode(task.Args)
	if err != nil {
		return []string{err.Error()}
	}
	var out []string
	for _, key := range slices.Sorted(maps.Keys(s.want)) {
		if v, there := got[key]; !there {
			out = append(out, key+" is missing")
		} else if !equal(s.want[key], v) {
			out = append(out, fmt.Sprintf("%s is %s, not %s", key, short(show(v)), short(show(s.want[key]))))
		}
	}
	return out
}

func (s *found) wanted() string {
	if len(s.args) == 0 {
		return s.path
	}
	return s.path + " with " + short(show(s.args))
}

// instead describes the tasks that were found.
func (s *found) instead(t testing.TB) string {
	t.Helper()
	own := "tasks of this path: none"
	if len(s.tasks) > 0 {
		own = "tasks of this path:\n" + list(s.tasks, func(task outbox.TaskModel) string {
			return describe(task) + ": " + strings.Join(s.differences(task), "; ")
		})
	}
	return own +
		"\ntasks of other paths: " + counts(t, s.db, &outbox.TaskModel{}, "func", "func <> ?", s.path) +
		"\nended tasks of this path: " + counts(t, s.db, &outbox.HistoryModel{}, "status", "func = ?", s.path)
}

type tally struct {
	Value string
	N     int
}

// counts rows by a column: "a (2), b (1)".
func counts(t testing.TB, db *gorm.DB, model any, column, where string, args ...any) string {
	t.Helper()
	var rows []tally
	query := db.Model(model).Select(column + " AS value, count(*) AS n").Group(column).Order(column)
	if where != "" {
		query = query.Where(where, args...)
	}
	if err := query.Scan(&rows).Error; err != nil {
		return err.Error()
	}
	if len(rows) == 0 {
		return "none"
	}
	return strings.Join(texts(rows, func(r tally) string { return fmt.Sprintf("%s (%d)", r.Value, r.N) }), ", ")
}

// maxListed limits the tasks in a message.
const maxListed = 20

func list(tasks []outbox.TaskModel, line func(outbox.TaskModel) string) string {
	lines := texts(tasks[:min(len(tasks), maxListed)], line)
	if more := len(tasks) - len(lines); more > 0 {
		lines = append(lines, fmt.Sprintf("and %d more", more))
	}
	return indent(strings.Join(lines, "\n"))
}

func describe(task outbox.TaskModel) string {
	return fmt.Sprintf("%s, %s, due %s, %s", task.ID, task.State, task.RunAt.UTC().Format("2006-01-02 15:04:05.000Z"),
		short(string(task.Args)))
}

func texts[T any](list []T, text func(T) string) []string {
	out := make([]string, len(list))
	for i, v := range list {
		out[i] = text(v)
	}
	return out
}

func indent(s string) string { return "\t" + strings.ReplaceAll(s, "\n", "\n\t") }

func short(s string) string {
	const limit = 1000
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "") + "…"
}

// show is JSON for people: it does not escape HTML.
func show(v any) string {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return err.Error()
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// decode keeps every digit of a number.
func decode(raw []byte) (map[string]any, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var v map[string]any
	if err := dec.Decode(&v); err != nil {
		return nil, fmt.Errorf("not a JSON object: %w", err)
	}
	return v, nil
}

// equal compares decoded JSON. reflect.DeepEqual would treat 1 and 1.0 as different.
func equal(a, b any) bool {
	switch a := a.(type) {
	case map[string]any:
		b, ok := b.(map[string]any)
		return ok && maps.EqualFunc(a, b, equal)
	case []any:
		b, ok := b.([]any)
		return ok && slices.EqualFunc(a, b, equal)
	case json.Number:
		b, ok := b.(json.Number)
		return ok && (a == b || equalNumbers(a, b))
	}
	return a == b
}

// equalNumbers is false for exponents over a million, because they would need too much memory.
func equalNumbers(a, b json.Number) bool {
	x, xOK := new(big.Rat).SetString(a.String())
	y, yOK := new(big.Rat).SetString(b.String())
	return xOK && yOK && x.Cmp(y) == 0
}
