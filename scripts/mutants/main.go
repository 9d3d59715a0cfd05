// Command mutants takes the library's guards away, one at a time, and shows which test notices.
//
// It reads mutants.txt, builds each mutant as an overlay over the tree, which stays untouched, and
// runs the tests that are named for it, in the root and in the packages that it changes; if these
// see nothing, all of theirs. It fails if a mutant survives or does not compile, if its text is not
// found exactly once, or if the named tests fail without any mutant.
//
//	go run ./scripts/mutants [-named] [word…]
//
// runs those whose names contain one of the words; with -named only the named tests.
package main

import (
	_ "embed"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"
)

//go:embed mutants.txt
var table string

// mutant is a block of the table: "# name", then for each change "@ file", the text in lines of "-
// " and what replaces it in lines of "+ ", then "! tests", a pattern for go test -run.
type mutant struct {
	name, tests string
	changes     []change
}

type change struct{ file, old, new string }

func parse(table string) (list []mutant, err error) {
	for block := range strings.SplitSeq(strings.TrimSpace(table), "\n\n") {
		var m mutant
		var c *change
		var was, is []string
		for line := range strings.SplitSeq(block, "\n") {
			if len(line) > 2 && line[0] == '@' {
				m.changes = append(m.changes, change{file: line[2:]})
				c, was, is = &m.changes[len(m.changes)-1], nil, nil
				continue
			}
			switch mark, text := line[0], strings.TrimPrefix(line[1:], " "); {
			case mark == '#':
				m.name = text
			case mark == '!':
				m.tests = text
			case mark == '-' && c != nil:
				was = append(was, text)
				c.old = strings.Join(was, "\n")
			case mark == '+' && c != nil:
				is = append(is, text)
				c.new = strings.Join(is, "\n")
			default:
				return nil, fmt.Errorf("mutants.txt: what is %q?", line)
			}
		}
		if m.name == "" || m.tests == "" || len(m.changes) == 0 {
			return nil, fmt.Errorf("mutants.txt: incomplete: %q", block)
		}
		list = append(list, m)
	}
	return list, nil
}

// overlay writes the changed files below dir, and what go's -overlay reads.
func (m mutant) overlay(dir string) (path string, err error) {
	texts := map[string]string{}
	for _, c := range m.changes {
		text, ok := texts[c.file]
		if !ok {
			b, err := os.ReadFile(c.file)
			if err != nil {
				return "", err
			}
			text = string(b)
		}
		if n := strings.Count(text, c.old); n != 1 {
			return "", fmt.Errorf("found %d times in %s, must be once: %q", n, c.file, c.old)
		}
		texts[c.file] = strings.Replace(text, c.old, c.new, 1)
	}
	replace := map[string]string{}
	for file, text := range texts {
		original, err := filepath.Abs(file)
		if err != nil {
			return "", err
		}
		replace[original] = filepath.Join(dir, filepath.Base(file))
		if err := os.WriteFile(replace[original], []byte(text), 0o600); err != nil {
			return "", err
		}
	}
	b, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	path = filepath.Join(dir, "overlay.json")
	return path, os.WriteFile(path, b, 0o600)
}

var (
	failed  = regexp.MustCompile(`(?m)^\s*--- FAIL: (\S+)`)
	hanging = regexp.MustCompile(`(?s)panic: test timed out.*?running tests:\s+(\S+)`)
)

// everybodys are the packages whose tests run all of the library.
var everybodys = []string{".", "./scenarios"}

// packages are those whose tests may notice: those of the changed files, and everybody's.
func packages(mutants ...mutant) []string {
	var list []string
	for _, m := range mutants {
		for _, c := range m.changes {
			if dir := "./" + filepath.Dir(c.file); dir != "./." && !slices.Contains(list, dir) {
				list = append(list, dir)
			}
		}
	}
	return append(list, everybodys...)
}

// run executes tests of some packages and names the one that failed; "" means that all passed.
func run(overlay, tests, limit string, packages ...string) (caught, output string, err error) {
	args := []string{"test", "-count=1", "-failfast", "-vet=off", "-timeout=" + limit, "-run", "^(" + tests + ")$"}
	if overlay != "" {
		args = append(args, "-overlay", overlay)
	}
	out, failure := exec.Command("go", append(args, packages...)...).CombinedOutput()
	output = string(out)
	if failure == nil {
		if strings.Count(output, "[no tests to run]")+strings.Count(output, "[no test files]") == len(packages) {
			return "", output, errNoTests
		}
		return "", output, nil
	}
	if strings.Contains(output, "[build failed]") || strings.Contains(output, "[setup failed]") {
		return "", output, fmt.Errorf("does not compile")
	}
	if m := hanging.FindStringSubmatch(output); m != nil {
		return m[1] + " (hangs)", output, nil
	}
	// The last one is the innermost of the first top-level test: its own name comes before its
	// subtests'.
	if m := failed.FindAllStringSubmatch(output, -1); m != nil {
		return m[len(m)-1][1], output, nil
	}
	return "the test binary ended", output, nil
}

func (m mutant) try() (caught, output string, err error) {
	dir, err := os.MkdirTemp("", "mutant")
	if err != nil {
		return "", "", err
	}
	defer os.RemoveAll(dir)
	overlay, err := m.overlay(dir)
	if err != nil {
		return "", "", err
	}
	// Where a named test is in a changed package it is enough, as a rule: the others compile and
	// run longer.
	ran := false
	for _, where := range packages(m) {
		if caught, output, err = run(overlay, m.tests, "2m", where); caught != "" || err != nil && err != errNoTests {
			return caught, output, err
		}
		ran = ran || err == nil
	}
	if !ran {
		return "", output, errNoTests
	}
	if *named {
		return "", output, nil
	}
	return run(overlay, ".*", "20m", packages(m)...)
}

var errNoTests = errors.New("no test has this name")

// outcome is what became of one mutant.
type outcome struct {
	caught, output string
	err            error
	took           time.Duration
}

func timed(try func() (caught, output string, err error)) (o outcome) {
	begun := time.Now()
	o.caught, o.output, o.err = try()
	o.took = time.Since(begun)
	return o
}

var named = flag.Bool("named", false, "run the named tests only")

func main() {
	flag.Parse()
	list, err := parse(table)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	var chosen []mutant
	tests := map[string]bool{}
	for _, m := range list {
		wanted := flag.NArg() == 0
		for _, word := range flag.Args() {
			wanted = wanted || strings.Contains(m.name, word)
		}
		if wanted {
			chosen = append(chosen, m)
			for test := range strings.SplitSeq(m.tests, "|") {
				tests[test] = true
			}
		}
	}
	bad := 0
	report := func(name string, expect bool, o outcome) {
		result := "`" + o.caught + "`"
		switch {
		case o.err != nil:
			result = "**" + o.err.Error() + "**"
		case o.caught == "":
			result = "nothing"
		}
		fmt.Printf("| %s | %s | %.0f |\n", name, result, o.took.Seconds())
		if o.err != nil || (o.caught != "") != expect {
			bad++
			fmt.Fprintln(os.Stderr, o.output)
		}
	}
	fmt.Print("| without | caught by | seconds |\n|---|---|---|\n")
	all := make([]string, 0, len(tests))
	for test := range tests {
		all = append(all, test)
	}
	report("(unchanged)", false, timed(func() (string, string, error) { return run("", strings.Join(all, "|"), "10m", packages(chosen...)...) }))
	// As many at a time as there are processors, for tests mostly wait.
	outcomes, places := make([]chan outcome, len(chosen)), make(chan struct{}, runtime.NumCPU())
	for i := range outcomes {
		outcomes[i] = make(chan outcome, 1)
	}
	go func() {
		for i, m := range chosen {
			places <- struct{}{}
			go func() {
				outcomes[i] <- timed(m.try)
				<-places
			}()
		}
	}()
	for i, m := range chosen {
		report(m.name, true, <-outcomes[i])
	}
	fmt.Printf("\n%d mutants, %d not as they should be\n", len(chosen), bad)
	if bad > 0 {
		os.Exit(1)
	}
}
