package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The document holds what was measured, as it was measured: figures that somebody edits, or forgets
// to put in, show here.
func TestDocument(t *testing.T) {
	all, err := readRecords(resultsFile)
	if errors.Is(err, fs.ErrNotExist) {
		t.Skip("nothing has been measured yet")
	}
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	filled, err := fill(string(text), all)
	if err != nil {
		t.Fatal(err)
	}
	if filled != string(text) {
		t.Errorf("%s is not what go run . -render makes of %s", document, resultsFile)
	}
	for _, c := range charts {
		r := all.table(c.table)
		if r == nil {
			continue
		}
		picture, err := os.ReadFile(filepath.Join(pictures(document), c.table+".svg"))
		if err != nil || string(picture) != c.svg(r) {
			t.Errorf("the chart of %s is not what go run . -render draws: %v", c.table, err)
		}
	}
}

func TestRender(t *testing.T) {
	dir := t.TempDir()
	text, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	doc, file := filepath.Join(dir, "benchmarks.md"), filepath.Join(dir, "results.json")
	if err := os.WriteFile(doc, text, 0o644); err != nil {
		t.Fatal(err)
	}
	here := machine{CPU: "a fast one"}
	rows := []row{{Name: "outbox", Ours: true, Cells: []cell{{4000, 5000, 3000}}}, {Name: "a <peer>", Cells: []cell{{1000, 1000, 1500}}}}
	r := &result{Name: "workoff", Title: "Working off a backlog", Columns: []column{{"rate", "tasks/s"}}, Rows: rows,
		Goals: []goal{{Text: "of the peer", Samples: rows[0].Cells[0].over(rows[1].Cells[0]), Unit: "×", Limit: 4.5}, comparison("the peer, of ours", rows, 1, 0)}}
	for range 2 { // the second time it replaces
		if err := record(file, here, r); err != nil {
			t.Fatal(err)
		}
		if err := render(file, doc); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(doc)
	if err != nil {
		t.Fatal(err)
	}
	for want, n := range map[string]int{
		"| **outbox** | 4,000 (3,000–5,000) |":                                                1,
		"of the peer | ≥ 4.50 × | 4.00 (2.00–5.00) × | **not met** |":                         1,
		"- [workoff](#working-off-a-backlog): of the peer: 4.00 (2.00–5.00) ×, goal ≥ 4.50 ×": 1,
		"the peer, of ours | – | 0.25 (0.20–0.50) × | for comparison |":                       1,
		unmeasured:   len(tables) - 1,
		"a fast one": 1,
	} {
		if strings.Count(string(got), want) != n {
			t.Errorf("%d times %q, want %d, in:\n%s", strings.Count(string(got), want), want, n, got)
		}
	}
	picture, err := os.ReadFile(filepath.Join(dir, "benchmarks", "workoff.svg"))
	if err != nil || !strings.Contains(string(picture), "a &lt;peer&gt;") {
		t.Errorf("chart: %v\n%s", err, picture)
	}
	// Figures of two machines do not stand side by side.
	if err := record(file, machine{CPU: "a slow one"}, &result{Name: "sqlite"}); err != nil {
		t.Fatal(err)
	}
	all, err := readRecords(file)
	if err != nil || len(all.Tables) != 1 || all.table("sqlite") == nil {
		t.Errorf("%+v, %v", all, err)
	}
}

func TestFormat(t *testing.T) {
	for v, want := range map[float64]string{
		123456: "123,000", 1999: "2,000", 1234567: "1,230,000", 999.6: "1,000", 123.4: "123", 12.34: "12.3", 1.234: "1.23", .1234: "0.12", .01234: "0.012", 0: "0",
	} {
		if got := format(v); got != want {
			t.Errorf("%v: %s, want %s", v, got, want)
		}
	}
}
