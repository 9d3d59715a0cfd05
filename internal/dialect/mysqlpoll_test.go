package dialect_test

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/gorm-outbox/outbox/internal/dialect"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

// counted counts the statements of a connection.
type counted struct {
	*sql.Conn
	n int
}

func (c *counted) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	c.n++
	return c.Conn.QueryContext(ctx, query, args...)
}

// Whatever the number of idle queues is, and of tasks in one of them.
func TestPollOfManyIdleQueuesOnMySQL(t *testing.T) {
	t.Parallel()
	for name, dsn := range map[string]func(testing.TB) string{"MySQL": testdb.MySQLDSN, "MariaDB": testdb.MariaDBDSN} {
		t.Run(name, func(t *testing.T) { pollOfManyIdleQueues(t, dsn(t)) })
	}
}

func pollOfManyIdleQueues(t *testing.T, dsn string) {
	const queues, large = 2000, 50_000
	db, err := sql.Open("mysql", dsn+"&interpolateParams=true")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	d, err := dialect.New("mysql", planNames(), nil)
	if err != nil {
		t.Fatal(err)
	}
	exec := func(query string, args ...any) {
		t.Helper()
		if _, err := db.Exec(query, args...); err != nil {
			t.Fatalf("%v\n%.300s", err, query)
		}
	}
	for _, query := range d.Schema() {
		exec(query)
	}
	type task struct {
		queue    string
		priority int
		in       string
	}
	number := 0
	insert := func(tasks ...task) {
		t.Helper()
		var values []string
		for _, k := range tasks {
			number++
			values = append(values, fmt.Sprintf("('%07d', 'a.b', '{}', '%s', %d, UTC_TIMESTAMP(6) + INTERVAL %s, 'pending', 0, 0, 0, 1, 0, false, 1, UTC_TIMESTAMP(6))",
				number, k.queue, k.priority, k.in))
		}
		exec(`INSERT INTO tasks (id, func, args, queue, priority, run_at, state, attempt, uncounted, crashes, max_attempts, timeout_ms,
			repeatable, version, created_at) VALUES ` + strings.Join(values, ", "))
	}
	var idle []task
	for i := range queues {
		idle = append(idle, task{fmt.Sprintf("queue %04d", i), 2, "1 DAY"})
	}
	for range large {
		idle = append(idle, task{"queue 1000", 3, "1 DAY"})
	}
	for len(idle) > 0 {
		n := min(1000, len(idle))
		insert(idle[:n]...)
		idle = idle[n:]
	}
	conn, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := &counted{Conn: conn}
	reads := func() (n int) {
		t.Helper()
		rows, err := conn.QueryContext(t.Context(), "SHOW SESSION STATUS WHERE Variable_name IN ('Handler_read_key', 'Handler_read_next')")
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		for rows.Next() {
			var name string
			var value int
			if err := rows.Scan(&name, &value); err != nil {
				t.Fatal(err)
			}
			n += value
		}
		return n
	}
	// poll compares what it finds with all that there is.
	poll := func(statements int) {
		t.Helper()
		c.n = 0
		before := reads()
		found, err := d.Poll(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		if n := reads() - before; n > 20*queues { // four priorities each, some of them more than once
			t.Errorf("a poll reads %d rows", n)
		}
		if c.n > statements {
			t.Errorf("a poll takes %d statements instead of %d", c.n, statements)
		}
		want := map[dialect.Partition]bool{}
		rows, err := db.Query("SELECT queue, priority, MIN(run_at) <= UTC_TIMESTAMP(6) FROM tasks WHERE state = 'pending' GROUP BY queue, priority")
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		for rows.Next() {
			var l dialect.Partition
			var due bool
			if err := rows.Scan(&l.Queue, &l.Priority, &due); err != nil {
				t.Fatal(err)
			}
			want[l] = due
		}
		for _, l := range found {
			due, there := want[l.Partition]
			if !there || due != l.Due || !due && (l.Next < 23*time.Hour || l.Next > 24*time.Hour) {
				t.Errorf("found %+v", l)
			}
			delete(want, l.Partition)
		}
		if len(want) > 0 {
			t.Errorf("did not find %v", want)
		}
	}
	poll(queues + 10) // none is known
	poll(2)
	insert(task{"queue 0000", 1, "-1 HOUR"}, task{"queue 1999", 2, "-1 HOUR"}, task{"queue 1000", 4, "1 DAY"})
	poll(2)
	insert(task{"a new one", 2, "-1 HOUR"}, task{"queue 0199 and new", 2, "1 DAY"}, task{"queue 0200 and new", 4, "-1 HOUR"},
		task{"queue 0200 and next", 2, "-1 HOUR"}, task{"the last", 1, "-1 HOUR"})
	poll(10)
	exec("DELETE FROM tasks WHERE queue LIKE 'queue 10%' AND priority = 2 OR queue = 'the last'")
	poll(2)
	insert(task{"the last", 1, "-1 HOUR"})
	poll(2)
}
