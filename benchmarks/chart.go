package main

import (
	"fmt"
	"html"
	"math"
	"slices"
	"strings"
)

// chart is a picture of one column of a table, or of its series.
type chart struct {
	table  string
	title  string
	column int
	log    bool // for what differs by orders of magnitude
	lines  bool // the series, not the column
}

var charts = []chart{
	{table: "workoff", title: "Working off a backlog, tasks a second"},
	{table: "defaults", title: "Working off with default options, tasks a second"},
	{table: "sqlite", title: "Working off on SQLite, tasks a second"},
	{table: "create", title: "A transaction with one row and one task: its rate, of the row alone, 1 writer", column: 2},
	{table: "latency", title: "From the commit to the handler at 50/s, p99 in milliseconds (logarithmic)", column: 1, log: true},
	{table: "snapshot", title: "Tasks a second while a snapshot is open, over the course of the backlog", lines: true},
}

// The picture has a ground of its own, since a page may be dark where the reader's system is light.
const chartStyle = `<style>
.g{fill:#fff}.t{fill:#1f2328;font:13px system-ui,sans-serif}.h{font-weight:600;font-size:14px}.s{fill:#59636e}.b{fill:#afb8c1}.o{fill:#0969da}
.a{stroke:#d1d9e0;fill:none}.l{fill:none;stroke-width:2}
@media(prefers-color-scheme:dark){.g{fill:#0d1117}.t{fill:#f0f6fc}.s{fill:#9198a1}.b{fill:#484f58}.o{fill:#4493f8}.a{stroke:#3d444d}}
</style>`

// colours of lines: readable on either ground.
var colours = []string{"#0969da", "#1a7f37", "#9a6700", "#bf3989"}

const chartWidth = 760

func (c chart) svg(r *result) string {
	if c.lines {
		return c.drawLines(r)
	}
	return c.drawBars(r)
}

func (c chart) drawBars(r *result) string {
	const left, right, top, step = 290, 110, 40, 28
	rows := slices.DeleteFunc(slices.Clone(r.Rows), func(w row) bool { return len(w.cell(c.column)) == 0 })
	var most float64
	least := math.Inf(1)
	for _, w := range rows {
		most, least = max(most, w.cell(c.column).median()), min(least, w.cell(c.column).median())
	}
	width := func(v float64) float64 {
		share := v / most
		if c.log {
			floor := math.Log10(least) - .3
			share = (math.Log10(v) - floor) / (math.Log10(most) - floor)
		}
		return share * (chartWidth - left - right)
	}
	var b strings.Builder
	c.open(&b, top+step*len(rows)+12)
	for i, w := range rows {
		v, y, class := w.cell(c.column).median(), top+step*i, "b"
		if w.Ours {
			class = "o"
		}
		fmt.Fprintf(&b, `<text class="t" x="%d" y="%d" text-anchor="end">%s</text>`+"\n", left-10, y+15, html.EscapeString(w.Name))
		fmt.Fprintf(&b, `<rect class="%s" x="%d" y="%d" width="%.1f" height="20" rx="3"/>`+"\n", class, left, y, max(1, width(v)))
		fmt.Fprintf(&b, `<text class="t" x="%.1f" y="%d">%s</text>`+"\n", left+max(1, width(v))+8, y+15, format(v))
	}
	b.WriteString("</svg>\n")
	return b.String()
}

func (c chart) drawLines(r *result) string {
	const left, right, top, height = 70, 20, 40, 220
	var most float64
	steps := 0
	for _, l := range r.Series {
		steps = max(steps, len(l.Points))
		for _, p := range l.Points {
			most = max(most, p.median())
		}
	}
	x := func(i int) float64 { return left + (float64(i)+.5)*(chartWidth-left-right)/float64(steps) }
	y := func(v float64) float64 { return top + height*(1-v/most) }
	var b strings.Builder
	c.open(&b, top+height+30+20*len(r.Series))
	for k := range 5 {
		v := most * float64(k) / 4
		fmt.Fprintf(&b, `<path class="a" d="M%d %.1fH%d"/><text class="t s" x="%d" y="%.1f" text-anchor="end">%s</text>`+"\n",
			left, y(v), chartWidth-right, left-8, y(v)+4, format(v))
	}
	for i := range steps {
		fmt.Fprintf(&b, `<text class="t s" x="%.1f" y="%d" text-anchor="middle">%d %%</text>`+"\n", x(i), top+height+18, 100*(i+1)/steps)
	}
	for i, l := range r.Series {
		points := make([]string, len(l.Points))
		for k, p := range l.Points {
			points[k] = fmt.Sprintf("%.1f %.1f", x(k), y(p.median()))
		}
		colour, dash := colours[i/2%len(colours)], ""
		if i%2 == 0 {
			dash = ` stroke-dasharray="5 4"` // the one without
		}
		legend := top + height + 38 + 20*i
		fmt.Fprintf(&b, `<path class="l" stroke="%s"%s d="M%s"/>`+"\n", colour, dash, strings.Join(points, "L"))
		fmt.Fprintf(&b, `<path class="l" stroke="%s"%s d="M%d %dh40"/><text class="t" x="%d" y="%d">%s</text>`+"\n",
			colour, dash, left, legend, left+50, legend+4, html.EscapeString(l.Name))
	}
	b.WriteString("</svg>\n")
	return b.String()
}

func (c chart) open(b *strings.Builder, height int) {
	fmt.Fprintf(b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%[1]d" height="%[2]d" role="img" aria-label="%[3]s">`+"\n",
		chartWidth, height, html.EscapeString(c.title))
	b.WriteString(chartStyle + "\n")
	fmt.Fprintf(b, `<rect class="g" width="%d" height="%d" rx="6"/>`+"\n", chartWidth, height)
	fmt.Fprintf(b, `<text class="t h" x="16" y="24">%s</text>`+"\n", html.EscapeString(c.title))
}
