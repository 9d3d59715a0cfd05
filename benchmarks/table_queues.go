package main

import (
	"context"
	"fmt"
	"time"

	"github.com/gorm-outbox/outbox"
)

// spread is ours with its tasks in some queues, beside tasks that are another's, or with many
// functions.
type spread struct {
	*ours
	queues    int  // in turn; 0 is the default queue alone
	others    int  // so many tasks are due first, that no dispatcher takes within the round
	otherFunc bool // they are of another function, in the same queue; otherwise in another queue
}

const (
	othersFunc  = "bench.other"
	othersQueue = "another"
)

func (s *spread) load(ctx context.Context, n int) error {
	if err := s.empty(ctx); err != nil {
		return err
	}
	if s.others > 0 {
		if err := s.loadOthers(ctx); err != nil {
			return err
		}
	}
	for from := 0; from < n; {
		batch := make([]outbox.NewTask, min(10_000, n-from))
		for i := range batch {
			batch[i] = outbox.NewTask{Func: benchFunc, Args: number{from + i}}
			if s.queues > 0 {
				batch[i].Options = []outbox.CreateOption{outbox.Queue(fmt.Sprintf("q%04d", (from+i)%s.queues))}
			}
		}
		from += len(batch)
		if _, err := outbox.CreateBatch(s.db.WithContext(ctx), batch...); err != nil {
			return err
		}
	}
	return settle(ctx, s.db.Dialector.Name(), s.pool)
}

// loadOthers creates the tasks of another process, and the row that says that it lives.
func (s *spread) loadOthers(ctx context.Context) error {
	if err := s.createMany(ctx, 0, s.others, outbox.Queue(othersQueue)); err != nil {
		return err
	}
	statements := []string{"INSERT INTO outbox_processes (id, host, pid, functions, slots, started_at, beat_at, beats) " +
		"SELECT 'another', 'h', 1, '[\"" + othersFunc + "\"]', 1, created_at, created_at, 1 FROM outbox_tasks LIMIT 1"}
	if s.otherFunc {
		statements = append(statements, "UPDATE outbox_tasks SET func = '"+othersFunc+"', queue = 'default'")
	}
	for _, q := range statements {
		if _, err := s.pool.ExecContext(ctx, q); err != nil {
			return err
		}
	}
	return nil
}

func (s *spread) unfinished(ctx context.Context) (bool, error) {
	return exists(ctx, s.pool, "SELECT 1 FROM outbox_tasks WHERE func = '"+benchFunc+"' AND queue <> '"+othersQueue+"'")
}

// enterSpread opens a contestant as enter does, with what spread adds.
func enterSpread(e entrant, functions int, s spread) entrant {
	open := e.open
	e.open = func(ctx context.Context, name string) (contestant, error) {
		c, err := open(ctx, name)
		if err != nil {
			return nil, err
		}
		s.ours = c.(*ours)
		for i := 1; i < functions; i++ {
			s.plugin.Handle(fmt.Sprintf("bench.another%d", i), func(context.Context) error { return nil }, outbox.Idempotent())
		}
		return &s, nil
	}
	return e
}

// manyQueues spreads the same tasks over more and more queues.
func (b *bench) manyQueues(ctx context.Context) (*result, error) {
	n := b.tasks(20_000)
	opts := outbox.Options{Concurrency: 1000}
	counts := []int{1, 500, 2000, 5000}
	var entrants []entrant
	for _, enter := range []func(name string) entrant{
		func(name string) entrant { return b.enterOurs("outbox on PostgreSQL, "+name, n, opts, conns) },
		func(name string) entrant { return b.enterOursSQLite("outbox on SQLite, "+name, n, opts, conns) },
		func(name string) entrant {
			return b.enterOursMySQL(onMariaDB, "outbox on MariaDB, "+name, n, opts, conns)
		},
	} {
		for _, queues := range counts {
			entrants = append(entrants, enterSpread(enter(fmt.Sprintf("queues: %s", format(float64(queues)))), 1, spread{queues: queues}))
		}
	}
	rows, err := b.workOffs(ctx, 2*time.Minute, entrants)
	if err != nil {
		return nil, err
	}
	r := &result{Columns: []column{{"rate", "tasks/s"}}, Rows: rows, Notes: []string{fmt.Sprintf(
		"%s tasks that do nothing, in turn in each queue, and all are due; 1,000 slots.", format(float64(n)))}}
	for i, server := range []string{"PostgreSQL", "SQLite", "MariaDB"} {
		for k := 1; k < len(counts); k++ {
			text, one, many := fmt.Sprintf("%s, %s queues, of one", server, format(float64(counts[k]))), len(counts)*i, len(counts)*i+k
			if server == "MariaDB" {
				r.Goals = append(r.Goals, comparison(text, rows, many, one))
				continue
			}
			r.Goals = append(r.Goals, b.ratio(text, rows, many, one, .3))
		}
	}
	return r, nil
}

// others measures what tasks cost that are due and that another process is to run, and functions
// that have no task.
func (b *bench) others(ctx context.Context) (*result, error) {
	n, theirs := b.tasks(10_000), b.tasks(100_000)
	mine := outbox.Options{Concurrency: 100, Queues: []string{"default"}}
	var entrants []entrant
	kinds := []struct {
		name      string
		functions int
		spread
	}{
		{"alone", 1, spread{}},
		{"another queue has a backlog", 1, spread{others: theirs}},
		{"another function has a backlog in this queue", 1, spread{others: theirs, otherFunc: true}},
		{"2,000 functions", 2000, spread{}},
	}
	for _, enter := range []func(name string) entrant{
		func(name string) entrant { return b.enterOurs("PostgreSQL, "+name, n, mine, conns) },
		func(name string) entrant { return b.enterOursSQLite("SQLite, "+name, n, mine, conns) },
		func(name string) entrant { return b.enterOursMySQL(onMariaDB, "MariaDB, "+name, n, mine, conns) },
	} {
		for _, k := range kinds {
			entrants = append(entrants, enterSpread(enter(k.name), k.functions, k.spread))
		}
	}
	rows, err := b.workOffs(ctx, 2*time.Minute, entrants)
	if err != nil {
		return nil, err
	}
	r := &result{Columns: []column{{"rate", "tasks/s"}}, Rows: rows, Notes: []string{fmt.Sprintf(
		"%s tasks that do nothing, 100 slots; the other backlog is of %s tasks that are due first, of a function or in a queue that this process does not serve.",
		format(float64(n)), format(float64(theirs)))}}
	for i, server := range []string{"PostgreSQL", "SQLite", "MariaDB"} {
		for k := 1; k < len(kinds); k++ {
			r.Goals = append(r.Goals, b.ratio(fmt.Sprintf("%s, %s, of alone", server, kinds[k].name), rows, len(kinds)*i+k, len(kinds)*i, .5))
		}
	}
	return r, nil
}
