package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"
)

// bench is one run of the program.
type bench struct {
	quick  bool
	n      int // tasks, where the flag says so
	rounds int
	host   *host
	pg     *server
	my     map[string]string // the DSNs of the MySQL kinds that have been started, by their names
}

// tasks is how many a table works with.
func (b *bench) tasks(full int) int {
	switch {
	case b.n > 0:
		return min(b.n, full)
	case b.quick:
		return full / 10
	}
	return full
}

// span is how long a table watches what has no number of tasks.
func (b *bench) span(full, quick time.Duration) time.Duration {
	if b.quick {
		return quick
	}
	return full
}

// measure is one contestant's part of a round; it returns a value for each column.
type measure struct {
	name string
	ours bool
	run  func(context.Context) ([]float64, error)

	rounds int // in the first ones only; 0 means all
}

// interleave lets everybody take part in every round, so that whatever happens to the machine
// happens to all, and begins each round with another one.
func (b *bench) interleave(ctx context.Context, rounds int, list []measure) ([]row, error) {
	rows := make([]row, len(list))
	for i, m := range list {
		rows[i] = row{Name: m.name, Ours: m.ours}
	}
	for round := range rounds {
		for k := range list {
			i := (k + round) % len(list)
			if list[i].rounds > 0 && round >= list[i].rounds {
				continue
			}
			values, err := list[i].run(ctx)
			if err != nil {
				return nil, fmt.Errorf("%s, round %d: %w", list[i].name, round+1, err)
			}
			fmt.Fprintf(os.Stderr, "  round %d: %s:", round+1, list[i].name)
			for c, v := range values {
				if c == len(rows[i].Cells) {
					rows[i].Cells = append(rows[i].Cells, nil)
				}
				rows[i].Cells[c] = append(rows[i].Cells[c], v)
				fmt.Fprintf(os.Stderr, " %s", format(v))
			}
			fmt.Fprintln(os.Stderr)
		}
	}
	return rows, nil
}

// entrant is a contestant of a work-off.
type entrant struct {
	name string
	ours bool
	n    int
	open func(ctx context.Context, name string) (contestant, error) // name is for its database
}

// onServer opens a contestant on a new database of the server.
func (b *bench) onServer(open func(ctx context.Context, dsn string) (contestant, error)) func(context.Context, string) (contestant, error) {
	return func(ctx context.Context, name string) (contestant, error) {
		dsn, err := b.pg.database(ctx, name)
		if err != nil {
			return nil, err
		}
		return open(ctx, dsn)
	}
}

// newFile names a file that is not there.
func (b *bench) newFile(name string) (string, error) {
	path, err := b.host.file(name)
	if err != nil {
		return "", err
	}
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.Remove(path + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	return path, nil
}

// onFile opens a contestant on a new SQLite file.
func (b *bench) onFile(open func(ctx context.Context, path string) (contestant, error)) func(context.Context, string) (contestant, error) {
	return func(ctx context.Context, name string) (contestant, error) {
		path, err := b.newFile(name + ".db")
		if err != nil {
			return nil, err
		}
		return open(ctx, path)
	}
}

// workOffs opens the entrants, has them work off their tasks round by round beside what else is
// measured, and closes them.
func (b *bench) workOffs(ctx context.Context, limit time.Duration, entrants []entrant, more ...measure) ([]row, error) {
	var list []measure
	for i, e := range entrants {
		c, err := e.open(ctx, fmt.Sprintf("bench%d", i))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", e.name, err)
		}
		defer c.close()
		list = append(list, measure{name: e.name, ours: e.ours, run: func(ctx context.Context) ([]float64, error) {
			rate, err := workOff(ctx, c, e.n, limit)
			return []float64{rate}, err
		}})
	}
	return b.interleave(ctx, b.rounds, append(list, more...))
}

// ratio is a goal of one row's first column over another's.
func (b *bench) ratio(text string, rows []row, a, c int, limit float64) goal {
	return goal{Text: text, Samples: rows[a].Cells[0].over(rows[c].Cells[0]), Unit: "×", Limit: limit, Quick: b.quick}
}

// comparison is a ratio that is nobody's goal.
func comparison(text string, rows []row, a, c int) goal {
	return goal{Text: text, Samples: rows[a].Cells[0].over(rows[c].Cells[0]), Unit: "×", Info: true}
}
