// Command benchmarks compares this library with its peers and with what the database can do.
//
//	go run . [-quick] [-n TASKS] [-rounds N] [-json FILE] TABLE… | all
//	go run . -render
//
// It starts a PostgreSQL, a MariaDB and a MySQL of its own, with the durable settings of a real
// one, and lets the contestants take turns. Each of them checks that every task ran once and is
// finished in the database before its clock stops. -render writes the tables and charts of
// docs/benchmarks.md from what -json has written.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

const (
	resultsFile = "results.json"
	document    = "../docs/benchmarks.md"
)

// table is one command.
type table struct {
	name, title string
	run         func(*bench, context.Context) (*result, error)
}

var tables = []table{
	{"workoff", "Working off a backlog", (*bench).workOffTable},
	{"workoff10", "Working off with few slots", (*bench).workOffSmall},
	{"defaults", "Working off with default options", (*bench).defaults},
	{"processes", "Four processes on one database", (*bench).processes},
	{"create", "One transaction, one row and one task", (*bench).create},
	{"batch", "Creating many at once", (*bench).batch},
	{"latency", "From the commit to the handler", (*bench).latency},
	{"future", "A start time in the future", (*bench).future},
	{"idle", "Nothing to do", (*bench).idle},
	{"ballast", "Full tables", (*bench).ballast},
	{"snapshot", "A snapshot that is left open", (*bench).snapshot},
	{"mysql", "Working off on MariaDB and MySQL", (*bench).mysql},
	{"sqlite", "Working off on SQLite", (*bench).sqlite},
	{"memory", "Memory", (*bench).memory},
	{"queues", "Many queues", (*bench).manyQueues},
	{"others", "Beside the tasks of others", (*bench).others},
	{"planflip", "A queue that was empty when it was analysed", (*bench).planflip},
}

func main() {
	if config := os.Getenv(childEnv); config != "" {
		if err := childMain(config); err != nil {
			fmt.Fprintln(os.Stderr, "benchmarks: child process:", err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "benchmarks:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("benchmarks", flag.ContinueOnError)
	b := &bench{host: &host{}}
	flags.BoolVar(&b.quick, "quick", false, "a tenth of the tasks, one round")
	flags.IntVar(&b.n, "n", 0, "at most so many tasks")
	flags.IntVar(&b.rounds, "rounds", 0, "rounds of each table (5, or 1 with -quick)")
	file := flags.String("json", "", "put the tables into this file, beside those that it has")
	rendering := flags.Bool("render", false, "write the tables and charts of docs/benchmarks.md from results.json, and measure nothing")
	flags.Usage = func() {
		fmt.Fprintf(flags.Output(), "usage: benchmarks [flags] TABLE… | all\n\n")
		for _, t := range tables {
			fmt.Fprintf(flags.Output(), "  %-10s %s\n", t.name, t.title)
		}
		fmt.Fprintln(flags.Output())
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if *rendering {
		return render(resultsFile, document)
	}
	chosen, err := choose(flags.Args())
	if err != nil {
		return err
	}
	if b.rounds == 0 {
		b.rounds = 5
		if b.quick {
			b.rounds = 1
		}
	}
	defer b.host.close()
	b.pg = &server{host: b.host}
	var here machine
	if *file != "" {
		if here, err = thisMachine(ctx, b.pg); err != nil {
			return err
		}
	}
	begun := time.Now()
	for _, t := range chosen {
		fmt.Fprintf(os.Stderr, "%s: %s\n", t.name, t.title)
		tableBegun := time.Now()
		r, err := t.run(b, ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", t.name, err)
		}
		r.Name, r.Title = t.name, t.title
		fmt.Print(r.text())
		fmt.Printf("  (%v)\n", time.Since(tableBegun).Round(time.Second))
		if *file != "" {
			if err := record(*file, here, r); err != nil {
				return err
			}
		}
	}
	fmt.Printf("\n%d tables in %v\n", len(chosen), time.Since(begun).Round(time.Second))
	return nil
}

func choose(names []string) ([]table, error) {
	if slices.Equal(names, []string{"all"}) {
		return tables, nil
	}
	var chosen []table
	var known []string
	for _, t := range tables {
		known = append(known, t.name)
		if slices.Contains(names, t.name) {
			chosen = append(chosen, t)
		}
	}
	for _, name := range names {
		if !slices.Contains(known, name) {
			return nil, fmt.Errorf("there is no table %s; there are %s and all", name, strings.Join(known, ", "))
		}
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("name a table: %s, or all", strings.Join(known, ", "))
	}
	return chosen, nil
}
