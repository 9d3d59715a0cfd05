package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// render writes the figures of the file into a document, between its markers <!-- NAME --> and <!--
// /NAME -->, and draws the charts beside it. So no figure is in the document that was not measured.
func render(file, document string) error {
	all, err := readRecords(file)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(document)
	if err != nil {
		return err
	}
	filled, err := fill(string(text), all)
	if err != nil {
		return fmt.Errorf("%s: %w", document, err)
	}
	dir := pictures(document)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, c := range charts {
		picture := filepath.Join(dir, c.table+".svg")
		r := all.table(c.table)
		if r == nil {
			if err := os.Remove(picture); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			continue
		}
		if err := os.WriteFile(picture, []byte(c.svg(r)), 0o644); err != nil {
			return err
		}
	}
	return os.WriteFile(document, []byte(filled), 0o644)
}

// pictures is the directory of a document's charts.
func pictures(document string) string { return strings.TrimSuffix(document, ".md") }

func (all *records) table(name string) *result {
	for _, r := range all.Tables {
		if r.Name == name {
			return r
		}
	}
	return nil
}

// fill replaces what is between the markers.
func fill(text string, all *records) (string, error) {
	sections := map[string]string{"machine": all.Machine.markdown(), "goals": all.goals(), "lost": all.lost()}
	for _, t := range tables {
		sections[t.name] = all.section(t.name)
	}
	for name, body := range sections {
		begin, end := "<!-- "+name+" -->\n", "<!-- /"+name+" -->"
		before, rest, ok := strings.Cut(text, begin)
		_, after, ok2 := strings.Cut(rest, end)
		if !ok || !ok2 {
			return "", fmt.Errorf("there is no %s … %s", strings.TrimSpace(begin), end)
		}
		text = before + begin + "\n" + strings.TrimSpace(body) + "\n\n" + end + after
	}
	return text, nil
}

const unmeasured = "*Not measured on this machine.*"

func (m machine) markdown() string {
	return fmt.Sprintf("%s, %d cores, %s of memory, %s, PostgreSQL %s, SQLite %s. Modules: %s.", m.CPU, m.Cores, m.Memory, m.Go, m.Postgres, m.SQLite,
		strings.Join(m.Modules, ", "))
}

// section is a table with its chart.
func (all *records) section(name string) string {
	r := all.table(name)
	if r == nil {
		return unmeasured
	}
	text := r.markdown()
	for _, c := range charts {
		if c.table == name {
			text += fmt.Sprintf("\n![%s](benchmarks/%s.svg)\n", c.title, name)
		}
	}
	return text
}

// goals is the table of what was to be reached.
func (all *records) goals() string {
	var b strings.Builder
	b.WriteString("| table | measure | goal | measured | |\n|---|---|---:|---:|---|\n")
	for _, r := range all.Tables {
		for _, g := range r.Goals {
			fmt.Fprintf(&b, "| [%s](#%s) | %s | %s | %s | %s |\n", r.Name, anchor(r.Title), g.Text, g.limit(), g.measured(), g.verdict())
		}
	}
	return b.String()
}

// lost names what was not reached.
func (all *records) lost() string {
	var b strings.Builder
	for _, r := range all.Tables {
		for _, g := range r.Goals {
			if !g.met() {
				fmt.Fprintf(&b, "- [%s](#%s): %s: %s, goal %s\n", r.Name, anchor(r.Title), g.Text, g.measured(), g.limit())
			}
		}
	}
	if b.Len() == 0 {
		return "Every goal is met."
	}
	return b.String()
}

// anchor is what a heading is called in a link.
func anchor(title string) string {
	return strings.ReplaceAll(strings.ToLower(strings.NewReplacer(",", "", ".", "").Replace(title)), " ", "-")
}
