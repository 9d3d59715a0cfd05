package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A guard whose line has changed is not shown to be needed any more.
func TestTextsAreFoundOnce(t *testing.T) {
	list, err := parse(table)
	if err != nil || len(list) == 0 {
		t.Fatal(len(list), err)
	}
	for _, m := range list {
		for _, c := range m.changes {
			source, err := os.ReadFile(filepath.Join("..", "..", c.file))
			if err != nil {
				t.Fatal(err)
			}
			if n := strings.Count(string(source), c.old); n != 1 {
				t.Errorf("%s: its text is found %d times in %s", m.name, n, c.file)
			}
		}
	}
}
