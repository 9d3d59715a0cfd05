package main

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// result is one table: what a command prints, writes as JSON, and docs/benchmarks.md shows.
type result struct {
	Name    string   `json:"name"`
	Title   string   `json:"title"`
	Notes   []string `json:"notes,omitempty"` // what was measured, and with which settings
	Columns []column `json:"columns"`
	Rows    []row    `json:"rows"`
	Series  []line   `json:"series,omitempty"` // for a chart over the course of a round
	Goals   []goal   `json:"goals,omitempty"`
}

// line has a cell a step.
type line struct {
	Name   string `json:"name"`
	Ours   bool   `json:"ours,omitempty"`
	Points []cell `json:"points"`
}

type column struct {
	Name string `json:"name"`
	Unit string `json:"unit"`
}

// row is a contestant. It has a cell a column.
type row struct {
	Name  string `json:"name"`
	Ours  bool   `json:"ours,omitempty"`
	Cells []cell `json:"cells"`
}

// cell is what was measured round by round; empty where nothing was.
type cell []float64

func (w row) cell(i int) cell {
	if i >= len(w.Cells) {
		return nil
	}
	return w.Cells[i]
}

// goal is a row of the table of what is to be reached. Its samples are those of each round, for
// what varies from one to the next is the machine, which the contestants of a round share.
type goal struct {
	Text    string  `json:"text"`
	Samples cell    `json:"samples"`
	Unit    string  `json:"unit"` // of the samples and the limit; × for a ratio
	Limit   float64 `json:"limit"`
	AtMost  bool    `json:"at_most,omitempty"`
	Info    bool    `json:"info,omitempty"`  // no goal but a comparison, which says what is in reach
	Quick   bool    `json:"quick,omitempty"` // too few tasks or rounds to say that it is met
}

func (c cell) median() float64 {
	if len(c) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(c))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

func (c cell) String() string {
	switch {
	case len(c) == 0:
		return "–"
	case len(c) == 1:
		return format(c[0])
	}
	return fmt.Sprintf("%s (%s–%s)", format(c.median()), format(slices.Min(c)), format(slices.Max(c)))
}

// over divides round by round.
func (c cell) over(d cell) cell {
	ratios := make(cell, min(len(c), len(d)))
	for i := range ratios {
		ratios[i] = c[i] / d[i]
	}
	return ratios
}

func (g goal) met() bool {
	if g.Info {
		return true
	}
	m := g.Samples.median()
	if g.AtMost {
		return m <= g.Limit
	}
	return m >= g.Limit
}

func (g goal) limit() string {
	if g.Info {
		return "–"
	}
	sign := "≥"
	if g.AtMost {
		sign = "≤"
	}
	return strings.TrimSpace(fmt.Sprintf("%s %s %s", sign, format(g.Limit), g.Unit))
}

func (g goal) measured() string { return strings.TrimSpace(fmt.Sprintf("%s %s", g.Samples, g.Unit)) }

func (g goal) verdict() string {
	if g.Info {
		return "for comparison"
	}
	verdict := "**not met**"
	if g.met() {
		verdict = "met"
	}
	if g.Quick {
		verdict += " (a quick run: no verdict)"
	}
	return verdict
}

func (g goal) String() string {
	if g.Info {
		return fmt.Sprintf("%s: %s, for comparison", g.Text, g.measured())
	}
	return fmt.Sprintf("%s: %s, goal %s: %s", g.Text, g.measured(), g.limit(), g.verdict())
}

// format shows three digits, for more are noise, and groups thousands.
func format(v float64) string {
	switch a := math.Abs(v); {
	case math.IsNaN(v):
		return "–"
	case a == 0:
		return "0"
	case a >= 999.5:
		scale := math.Pow(10, math.Floor(math.Log10(a))-2)
		digits := fmt.Sprintf("%.0f", math.Round(v/scale)*scale)
		for i := len(digits) - 3; i > 0; i -= 3 {
			digits = digits[:i] + "," + digits[i:]
		}
		return digits
	case a >= 100:
		return fmt.Sprintf("%.0f", v)
	case a >= 10 && v == math.Trunc(v):
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	case a >= 0.1:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.2g", v)
}

// text is the table for a terminal.
func (r *result) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "\n%s: %s\n", r.Name, r.Title)
	for _, n := range r.Notes {
		fmt.Fprintf(&b, "  %s\n", n)
	}
	lines := [][]string{{""}}
	for _, c := range r.Columns {
		lines[0] = append(lines[0], strings.TrimSuffix(c.Name+", "+c.Unit, ", "))
	}
	for _, w := range r.Rows {
		line := []string{w.Name}
		for i := range r.Columns {
			line = append(line, w.cell(i).String())
		}
		lines = append(lines, line)
	}
	widths := make([]int, len(lines[0]))
	for _, line := range lines {
		for i, s := range line {
			widths[i] = max(widths[i], len([]rune(s)))
		}
	}
	for _, line := range lines {
		b.WriteString(" ")
		for i, s := range line {
			pad := strings.Repeat(" ", widths[i]-len([]rune(s)))
			if i == 0 {
				b.WriteString(" " + s + pad)
			} else {
				b.WriteString("  " + pad + s)
			}
		}
		b.WriteString("\n")
	}
	for _, g := range r.Goals {
		fmt.Fprintf(&b, "  → %s\n", g)
	}
	return b.String()
}

// markdown is the table for docs/benchmarks.md.
func (r *result) markdown() string {
	var b strings.Builder
	for _, n := range r.Notes {
		fmt.Fprintf(&b, "%s\n", n)
	}
	b.WriteString("\n| |")
	for _, c := range r.Columns {
		b.WriteString(" " + strings.TrimSuffix(c.Name+", "+c.Unit, ", ") + " |")
	}
	b.WriteString("\n|---|" + strings.Repeat("---:|", len(r.Columns)) + "\n")
	for _, w := range r.Rows {
		name := w.Name
		if w.Ours {
			name = "**" + name + "**"
		}
		b.WriteString("| " + name + " |")
		for i := range r.Columns {
			b.WriteString(" " + w.cell(i).String() + " |")
		}
		b.WriteString("\n")
	}
	return b.String()
}
