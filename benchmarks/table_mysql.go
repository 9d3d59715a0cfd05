package main

import (
	"context"
	"fmt"
	"time"

	"github.com/gorm-outbox/outbox"
)

// mysql compares this library on MariaDB with itself on PostgreSQL.
func (b *bench) mysql(ctx context.Context) (*result, error) {
	n := b.tasks(50_000)
	var entrants []entrant
	sizes := []int{10, 100, 1000}
	for _, size := range sizes {
		opts := outbox.Options{Concurrency: size}
		m := n
		if size == 10 {
			m = n / 5
		}
		entrants = append(entrants,
			b.enterOursMySQL(fmt.Sprintf("outbox on MariaDB, %s slots", format(float64(size))), m, opts, conns),
			b.enterOurs(fmt.Sprintf("outbox on PostgreSQL, %s slots", format(float64(size))), m, opts, conns))
	}
	rows, err := b.workOffs(ctx, 2*time.Minute, entrants)
	if err != nil {
		return nil, err
	}
	r := &result{Columns: []column{{"rate", "tasks/s"}}, Rows: rows, Notes: []string{fmt.Sprintf(
		"%s tasks that do nothing, %s with 10 slots; both servers with durable commits and otherwise their defaults.", format(float64(n)), format(float64(n/5)))}}
	for i, size := range sizes {
		r.Goals = append(r.Goals, b.ratio(fmt.Sprintf("%s slots, of PostgreSQL", format(float64(size))), rows, 2*i, 2*i+1, .5))
	}
	return r, nil
}
