package main

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/gorm-outbox/outbox"
)

// mysql compares this library on MariaDB and MySQL with itself on PostgreSQL.
func (b *bench) mysql(ctx context.Context) (*result, error) {
	n := b.tasks(30_000)
	var entrants []entrant
	sizes := []int{10, 100, 1000}
	for _, size := range sizes {
		opts := outbox.Options{Concurrency: size}
		m := n
		if size == 10 {
			m = n / 5
		}
		entrants = append(entrants,
			b.enterOursMySQL(onMariaDB, fmt.Sprintf("outbox on MariaDB, %s slots", format(float64(size))), m, opts, conns),
			b.enterOurs(fmt.Sprintf("outbox on PostgreSQL, %s slots", format(float64(size))), m, opts, conns),
			b.enterBareMySQL(size, m),
			b.enterOursMySQL(onMySQL, fmt.Sprintf("outbox on MySQL, %s slots", format(float64(size))), m, opts, conns))
	}
	dsn, err := b.pg.database(ctx, "mysql_commits")
	if err != nil {
		return nil, err
	}
	rows, err := b.workOffs(ctx, 2*time.Minute, entrants,
		b.commits("one INSERT and its COMMIT on MariaDB", "mysql", func() string { return b.mysqlDSN(onMariaDB) }),
		b.commits("one INSERT and its COMMIT on PostgreSQL", "pgx", func() string { return dsn }),
		b.commits("one INSERT and its COMMIT on MySQL", "mysql", func() string { return b.mysqlDSN(onMySQL) }))
	if err != nil {
		return nil, err
	}
	r := &result{Columns: []column{{"rate", "tasks/s"}}, Rows: rows, Notes: []string{fmt.Sprintf(
		"%s tasks that do nothing, %s with 10 slots; all servers with durable commits and otherwise their defaults.", format(float64(n)), format(float64(n/5)))}}
	for i, size := range sizes {
		r.Goals = append(r.Goals, b.ratio(fmt.Sprintf("%s slots, of PostgreSQL", format(float64(size))), rows, 4*i, 4*i+1, .5),
			comparison(fmt.Sprintf("%s slots, of the bare loop on MariaDB in groups of as many", format(float64(size))), rows, 4*i, 4*i+2),
			comparison(fmt.Sprintf("MySQL, %s slots, of MariaDB", format(float64(size))), rows, 4*i+3, 4*i))
	}
	commits := 4 * len(sizes)
	r.Goals = append(r.Goals, comparison("one INSERT and its COMMIT, of PostgreSQL", rows, commits, commits+1),
		comparison("one INSERT and its COMMIT, MySQL of MariaDB", rows, commits+2, commits))
	return r, nil
}

// commits measures how many a second there are of one row each, on one connection.
func (b *bench) commits(name, driver string, dsn func() string) measure {
	return measure{name: name, run: func(ctx context.Context) ([]float64, error) {
		pool, err := sql.Open(driver, dsn())
		if err != nil {
			return nil, err
		}
		defer pool.Close()
		if _, err := pool.ExecContext(ctx, "CREATE TABLE IF NOT EXISTS commits (body varchar(20))"); err != nil {
			return nil, err
		}
		rate, err := hammer(ctx, 1, b.span(2*time.Second, 200*time.Millisecond), func(ctx context.Context) error {
			_, err := pool.ExecContext(ctx, "INSERT INTO commits VALUES ('a row')")
			return err
		})
		return []float64{rate}, err
	}}
}
