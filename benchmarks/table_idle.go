package main

import (
	"context"
	"database/sql"
	"fmt"
	"time"
)

// idle lets dispatchers wait for work, each in a child process, all at once, for none of them does
// much.
func (b *bench) idle(ctx context.Context) (*result, error) {
	pg := &server{host: b.host, settings: []string{"shared_preload_libraries = 'pg_stat_statements'", "pg_stat_statements.track_utility = on"}}
	kinds := []struct {
		name, queue string
		slots       int
		ours        bool
	}{
		{"outbox", "outbox", 0, true},
		{"River, its own driver", "river", 0, false},
		{"River, database/sql", "river sql", 0, false},
		{"River, its own driver, tuned", "river tuned", 0, false},
	}
	window := 10 * time.Second // a heartbeat, by default
	windows := b.rounds
	rows := make([]row, len(kinds))
	children := make([]*process, len(kinds))
	var looks []*sql.DB
	for i, k := range kinds {
		rows[i] = row{Name: k.name, Ours: k.ours, Cells: make([]cell, 4)}
		dsn, err := pg.database(ctx, fmt.Sprintf("idle%d", i))
		if err != nil {
			return nil, err
		}
		if err := execOn(ctx, dsn, "CREATE EXTENSION pg_stat_statements"); err != nil {
			return nil, err
		}
		if children[i], err = spawn(ctx, job{Queue: k.queue, DSN: dsn}); err != nil {
			return nil, err
		}
		if err := children[i].begin(); err != nil {
			return nil, err
		}
		look, err := sql.Open("pgx", dsn)
		if err != nil {
			return nil, err
		}
		defer look.Close()
		looks = append(looks, look)
	}
	time.Sleep(3 * time.Second) // whatever a dispatcher does when it starts
	before := make([]spent, len(kinds))
	for w := range windows + 1 {
		for i := range kinds {
			now, err := look(ctx, looks[i], children[i])
			if err != nil {
				return nil, err
			}
			if w > 0 {
				s := now.at.Sub(before[i].at).Seconds()
				for c, v := range []float64{
					float64(now.statements-before[i].statements) / s, float64(now.brackets-before[i].brackets) / s,
					100 * (now.cpu - before[i].cpu).Seconds() / s, float64(now.logs - before[i].logs),
				} {
					rows[i].Cells[c] = append(rows[i].Cells[c], v)
				}
			}
			before[i] = now
		}
		if w < windows {
			time.Sleep(window)
		}
	}
	for _, p := range children {
		if _, err := p.end(); err != nil {
			return nil, err
		}
	}
	return &result{
		Notes:   []string{fmt.Sprintf("Default options and no tasks, in windows of %v. A bracket is a BEGIN, COMMIT or ROLLBACK. The log is counted from Info on.", window)},
		Columns: []column{{"statements", "1/s"}, {"of these brackets", "1/s"}, {"CPU of a core", "%"}, {"log lines", ""}},
		Rows:    rows,
		Goals: []goal{
			{Text: "statements", Samples: rows[0].Cells[0], Unit: "1/s", Limit: 1.2, AtMost: true, Quick: b.quick},
			{Text: "brackets", Samples: rows[0].Cells[1], Unit: "1/s", Limit: 0, AtMost: true, Quick: b.quick},
			{Text: "CPU", Samples: rows[0].Cells[2], Unit: "%", Limit: .3, AtMost: true, Quick: b.quick},
			{Text: "log lines", Samples: rows[0].Cells[3], Unit: "in a window", Limit: 0, AtMost: true, Quick: b.quick},
		},
	}, nil
}

type spent struct {
	usage
	at                   time.Time
	statements, brackets int64
}

func look(ctx context.Context, pool *sql.DB, p *process) (s spent, err error) {
	if s.usage, err = p.usage(); err != nil {
		return s, err
	}
	s.at = time.Now()
	err = pool.QueryRowContext(ctx, `
SELECT coalesce(sum(calls), 0)::bigint, coalesce(sum(calls) FILTER (WHERE query ~* '^(begin|start|commit|rollback)'), 0)::bigint
FROM pg_stat_statements JOIN pg_database d ON d.oid = dbid
WHERE d.datname = current_database() AND query NOT LIKE '%pg_stat_statements%'`).Scan(&s.statements, &s.brackets)
	return s, err
}
