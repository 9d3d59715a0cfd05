package dialect_test

import (
	"context"
	"database/sql"
	"fmt"
	"testing"
	"time"

	"github.com/gorm-outbox/outbox/internal/dialect"
)

// What a transaction of the dispatcher's has locked must keep nobody waiting but who asks for the
// same rows: no producer, whatever its level, and no other dispatcher.
func TestMySQLLocksOnlyTheRowsOfAStatement(t *testing.T) {
	t.Parallel()
	for name, dsn := range mysqlServers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			locksOnlyTheRowsOfAStatement(t, dsn(t))
		})
	}
}

func locksOnlyTheRowsOfAStatement(t *testing.T, dsn string) {
	db, err := sql.Open("mysql", dsn+"&innodb_lock_wait_timeout=1")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	d, err := dialect.New("mysql", planNames(), nil)
	if err != nil {
		t.Fatal(err)
	}
	none := func(dialect.Row) error { return nil }
	exec := func(query string, args ...any) {
		t.Helper()
		if _, err := db.Exec(query, args...); err != nil {
			t.Fatalf("%v\n%s", err, query)
		}
	}
	for _, s := range d.Schema() {
		exec(s)
	}
	for _, p := range []string{"p", "q"} {
		exec(`INSERT INTO processes (id, host, pid, functions, slots, started_at, beat_at, beats) VALUES (?, 'h', 1, '["a.b"]', 1, UTC_TIMESTAMP(6), UTC_TIMESTAMP(6), 1)`, p)
	}
	partition := dialect.Partition{Queue: "default", Priority: 2}
	rows := func(prefix, path string, n int, ago time.Duration) (list []dialect.NewRow) {
		at := d.Time(time.Now().Add(-ago))
		for i := range n {
			list = append(list, dialect.NewRow{ID: fmt.Sprintf("%s-%03d", prefix, i), Func: path, Args: "{}", Queue: partition.Queue,
				Priority: partition.Priority, At: &at, MaxAttempts: 1})
		}
		return list
	}
	insert := func(c dialect.Conn, list []dialect.NewRow) error { return d.Insert(t.Context(), c, list, none) }
	claim := func(c dialect.Conn, process string, limit int) (ids []string, err error) {
		err = d.Claim(t.Context(), c, dialect.ClaimParams{Process: process, Partitions: []dialect.Partition{partition}, Funcs: []string{"a.b"}, Limit: limit},
			func(r dialect.Row) error {
				dest := make([]any, len(dialect.Columns))
				var id string
				dest[0] = &id
				for i := range dest[1:] {
					dest[i+1] = new(any)
				}
				err := r.Scan(dest...)
				ids = append(ids, id)
				return err
			})
		return ids, err
	}
	version := int64(1)
	outcomes := func(ids []string) (list []dialect.Outcome) {
		for _, id := range ids {
			list = append(list, dialect.Outcome{ID: id, Version: &version, Process: "p", Status: "success"})
		}
		return list
	}
	for _, c := range []struct {
		name string
		run  func(ctx context.Context, c dialect.Conn, running []string) (int, error)
	}{
		{"a claim", func(_ context.Context, c dialect.Conn, _ []string) (int, error) {
			ids, err := claim(c, "p", 5)
			return len(ids), err
		}},
		{"a claim that finds fewer than it asks for", func(_ context.Context, c dialect.Conn, _ []string) (int, error) {
			ids, err := claim(c, "p", 30)
			return len(ids), err
		}},
		{"a finish", func(ctx context.Context, c dialect.Conn, running []string) (int, error) {
			version = 2
			ids, err := d.Move(ctx, c, dialect.FromRunning, outcomes(running))
			return len(ids), err
		}},
		{"a finish of what is gone", func(ctx context.Context, c dialect.Conn, running []string) (int, error) {
			version = 1
			ids, err := d.Move(ctx, c, dialect.FromRunning, append(outcomes(running), dialect.Outcome{ID: "due-5", Version: &version, Process: "p", Status: "success"}))
			return 1 + len(ids), err
		}},
		{"a cancellation", func(ctx context.Context, c dialect.Conn, _ []string) (int, error) {
			ids, err := d.Move(ctx, c, dialect.FromWaiting, []dialect.Outcome{{ID: "due-000", Status: "cancelled"}})
			return len(ids), err
		}},
		{"a retry", func(ctx context.Context, c dialect.Conn, running []string) (int, error) {
			ids, err := d.Requeue(ctx, c, []dialect.Requeued{{ID: running[0], Version: 2, Process: "p"}})
			return len(ids), err
		}},
		{"parking", func(ctx context.Context, c dialect.Conn, _ []string) (int, error) {
			funcs, err := d.Park(ctx, c, []dialect.Partition{partition}, 100)
			return len(funcs), err
		}},
		{"a take-over", func(ctx context.Context, c dialect.Conn, _ []string) (n int, err error) {
			return n, d.Orphans(ctx, c, 100, func(dialect.Row) error { n++; return nil })
		}},
		{"pruning", func(ctx context.Context, c dialect.Conn, _ []string) (int, error) {
			n, err := d.Prune(ctx, c, false, 0, 100)
			return int(n), err
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			exec("DELETE FROM tasks")
			exec("DELETE FROM history")
			if err := insert(db, rows("old", "a.b", 10, 3*time.Hour)); err != nil {
				t.Fatal(err)
			}
			running, err := claim(db, "p", 10)
			if err != nil || len(running) != 10 {
				t.Fatal(running, err)
			}
			version = 2
			if moved, err := d.Move(t.Context(), db, dialect.FromRunning, outcomes(running[5:])); err != nil || len(moved) != 5 {
				t.Fatal(moved, err)
			}
			running = running[:5]
			exec("UPDATE tasks SET process_id = 'gone' WHERE id = ?", running[4])
			for _, list := range [][]dialect.NewRow{rows("due", "a.b", 20, 2*time.Hour), rows("lost", "c.d", 5, 2*time.Hour)} {
				if err := insert(db, list); err != nil {
					t.Fatal(err)
				}
			}
			tx, err := db.BeginTx(t.Context(), &sql.TxOptions{Isolation: d.Isolation()})
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback()
			if n, err := c.run(t.Context(), tx, running); err != nil || n == 0 {
				t.Fatalf("it found %d, with the error %v", n, err)
			}
			for _, level := range []sql.IsolationLevel{sql.LevelReadCommitted, sql.LevelRepeatableRead} {
				producer, err := db.BeginTx(t.Context(), &sql.TxOptions{Isolation: level})
				if err != nil {
					t.Fatal(err)
				}
				for i, ago := range []time.Duration{4 * time.Hour, 2*time.Hour + time.Second, time.Hour, 0, -time.Hour} {
					for _, id := range []string{"a", "due-00", "due-9", "old", "zz"} {
						if err := insert(producer, rows(fmt.Sprint(id, level, i), "a.b", 1, ago)); err != nil {
							t.Errorf("%s: a task of %s ago with the id %s: %v", level, ago, id, err)
						}
					}
				}
				if err := producer.Rollback(); err != nil {
					t.Fatal(err)
				}
			}
			exec("UPDATE processes SET beats = beats + 1") // neither does its own heartbeat wait
			if _, err := d.Poll(t.Context(), db); err != nil {
				t.Errorf("a probe: %v", err)
			}
			if c.name == "a take-over" || c.name == "pruning" || c.name == "a cancellation" || c.name == "parking" {
				if moved, err := d.Move(t.Context(), db, dialect.FromRunning, outcomes(running[:2])); err != nil || len(moved) != 2 {
					t.Errorf("a finish of others: %v, %v", moved, err)
				}
			}
			free := 20
			switch c.name {
			case "a claim":
				free = 15
			case "a claim that finds fewer than it asks for":
				free = 0
			case "a cancellation":
				free = 19
			}
			if ids, err := claim(db, "q", 30); err != nil || len(ids) != free {
				t.Errorf("another claim finds %d of %d: %v", len(ids), free, err)
			}
		})
	}
}
