package dialect_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/gorm-outbox/outbox/internal/dialect"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

// A million tasks that are due next year and a million rows of history, half of them to be pruned,
// must cost the dispatcher's statements nothing: neither with fresh statistics nor with those of a
// table that was nearly empty.

const (
	planDue     = 2000 // tasks that are due
	planRunning = 100  // tasks of process p
	planLimit   = 100
)

func planNames() dialect.Names {
	return dialect.Names{Tasks: "tasks", History: "history", Processes: "processes", Audit: "audit", Version: "version",
		Index: func(table, what string) string { return "idx_" + table + "_" + what }}
}

// planned explains each statement before it runs it.
type planned struct {
	t       *testing.T
	tx      *sql.Tx
	explain func(p *planned, query string, args []any)
	bound   int // rows of the tables that a statement may look at
}

func (p *planned) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	p.explain(p, query, args)
	return p.tx.ExecContext(ctx, query, args...)
}

func (p *planned) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	p.explain(p, query, args)
	return p.tx.QueryContext(ctx, query, args...)
}

// eachPlan runs every statement of a dialect in a transaction that is rolled back.
func eachPlan(t *testing.T, db *sql.DB, d dialect.Dialect, explain func(*planned, string, []any)) {
	partitions := []dialect.Partition{{Queue: "default", Priority: 2}}
	claim := dialect.ClaimParams{Process: "p", Partitions: partitions, Funcs: []string{"a.b"}, Repeatable: []string{"a.b"}, Limit: planLimit}
	refill := claim
	refill.Cursors = map[dialect.Partition]dialect.Cursor{partitions[0]: {RunAt: time.Now().Add(-72 * time.Hour), ID: "x"}}
	batch := claim // a refill among tasks that were created at once
	batch.Cursors = map[dialect.Partition]dialect.Cursor{partitions[0]: {RunAt: startTime(t, db), ID: fmt.Sprintf("due-%06d", planDue-10)}}
	spread := claim // one of each queue, of which most are empty
	spread.Share, spread.Partitions = 1, nil
	for i := range planLimit {
		spread.Partitions = append(spread.Partitions, dialect.Partition{Queue: fmt.Sprint("empty ", i), Priority: 2})
	}
	spread.Partitions = append(spread.Partitions, partitions...)
	version := int64(1)
	var outcomes []dialect.Outcome
	var requeued []dialect.Requeued
	for i := range planRunning {
		outcomes = append(outcomes, dialect.Outcome{ID: fmt.Sprintf("running-%06d", i), Version: &version, Process: "p", Status: "success"})
		requeued = append(requeued, dialect.Requeued{ID: outcomes[i].ID, Version: version, Process: "p"})
	}
	none := func(dialect.Row) error { return nil }
	for _, c := range []struct {
		name  string
		bound int
		run   func(context.Context, dialect.Conn) (int, error)
	}{
		{"probe", 20, func(ctx context.Context, c dialect.Conn) (int, error) {
			found, err := d.Poll(ctx, c)
			if err == nil && (len(found) != 2 || !found[0].Due || found[0].Next < time.Hour) {
				err = fmt.Errorf("it found %+v", found)
			}
			return len(found), err
		}},
		{"claim", 3 * planLimit, func(ctx context.Context, c dialect.Conn) (n int, err error) {
			return n, d.Claim(ctx, c, claim, func(dialect.Row) error { n++; return nil })
		}},
		{"refill", 3 * planLimit, func(ctx context.Context, c dialect.Conn) (n int, err error) {
			return n, d.Claim(ctx, c, refill, func(dialect.Row) error { n++; return nil })
		}},
		{"refill in a batch", 3 * planLimit, func(ctx context.Context, c dialect.Conn) (n int, err error) {
			return n, d.Claim(ctx, c, batch, func(dialect.Row) error { n++; return nil })
		}},
		{"claim of many partitions", 3 * planLimit, func(ctx context.Context, c dialect.Conn) (n int, err error) {
			return n, d.Claim(ctx, c, spread, func(dialect.Row) error { n++; return nil })
		}},
		{"finish", 3 * planRunning, func(ctx context.Context, c dialect.Conn) (int, error) {
			ids, err := d.Move(ctx, c, dialect.FromRunning, outcomes)
			return len(ids), err
		}},
		{"exchange", 6 * planLimit, func(ctx context.Context, c dialect.Conn) (int, error) {
			e, ok := d.(dialect.Completer)
			if !ok {
				return 1, nil
			}
			ids, all, err := e.CompleteAndClaim(ctx, c, outcomes, claim, none)
			if all {
				return len(outcomes), err
			}
			return len(ids), err
		}},
		{"finish of an exchange", 3 * planRunning, func(ctx context.Context, c dialect.Conn) (int, error) {
			e, ok := d.(dialect.Completer)
			if !ok {
				return 1, nil
			}
			ids, all, err := e.Complete(ctx, c, outcomes)
			if all {
				return len(outcomes), err
			}
			return len(ids), err
		}},
		{"cancel", 10, func(ctx context.Context, c dialect.Conn) (int, error) {
			ids, err := d.Move(ctx, c, dialect.FromWaiting, []dialect.Outcome{{ID: "future-000001", Status: "cancelled"}})
			return len(ids), err
		}},
		{"put back", 3 * planRunning, func(ctx context.Context, c dialect.Conn) (int, error) {
			ids, err := d.Requeue(ctx, c, requeued)
			return len(ids), err
		}},
		{"park", 5 * planLimit, func(ctx context.Context, c dialect.Conn) (int, error) {
			funcs, err := d.Park(ctx, c, partitions, planLimit)
			return len(funcs), err
		}},
		{"bring back", 10, func(ctx context.Context, c dialect.Conn) (int, error) {
			n, err := d.Unpark(ctx, c, []string{"a.parked"}, nil, planLimit)
			return int(n), err
		}},
		{"take over", 3 * planRunning, func(ctx context.Context, c dialect.Conn) (n int, err error) {
			return n, d.Orphans(ctx, c, 500, func(dialect.Row) error { n++; return nil })
		}},
		{"prune", 3 * planLimit, func(ctx context.Context, c dialect.Conn) (int, error) {
			n, err := d.Prune(ctx, c, false, 24*time.Hour, planLimit)
			return int(n), err
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			tx, err := db.BeginTx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback()
			n, err := c.run(t.Context(), &planned{t: t, tx: tx, explain: explain, bound: c.bound})
			if err != nil || n == 0 {
				t.Fatalf("it found %d, with the error %v", n, err)
			}
		})
	}
}

// startTime is that of all tasks that are due.
func startTime(t *testing.T, db *sql.DB) time.Time {
	var v any
	err := db.QueryRow("SELECT run_at FROM tasks WHERE id = 'due-000000'").Scan(&v)
	at, ok := v.(time.Time)
	if !ok && err == nil {
		at, err = time.Parse("2006-01-02 15:04:05.000000-07:00", fmt.Sprint(v))
	}
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// fill makes the tables, takes statistics while they are nearly empty, and then loads them. series
// is a relation s of n rows with their number and its six digits.
func fill(t *testing.T, db *sql.DB, d dialect.Dialect, n int, analyze string, series func(n int) string, past, future string) {
	t.Helper()
	task := func(id, function, queue, run, state, process, from string) string {
		return fmt.Sprintf(`INSERT INTO tasks (id, func, args, queue, priority, run_at, state, attempt, uncounted, crashes, max_attempts,
	timeout_ms, repeatable, version, process_id, created_at)
SELECT %s, %s, '{}', %s, 2, %s, '%s', 0, 0, 0, 1, 0, false, 1, %s, %s FROM %s`, id, function, queue, run, state, process, past, from)
	}
	for _, query := range append(d.Schema(),
		"INSERT INTO processes (id, host, pid, functions, slots, started_at, beat_at, beats) VALUES ('p', 'h', 1, '[\"a.b\"]', 1, "+past+", "+past+", 1)",
		task("'first'", "'a.b'", "'default'", past, "pending", "NULL", series(1)),
		analyze,
		task("'due-' || s.digits", "CASE WHEN s.n % 2 = 0 THEN 'a.b' ELSE 'nobody' END", "'default'", past, "pending", "NULL", series(planDue)),
		task("'running-' || s.digits", "'a.b'", "'default'", past, "running", "'p'", series(planRunning)),
		task("'orphan-' || s.digits", "'a.b'", "'default'", past, "running", "'gone'", series(planRunning)),
		task("'parked'", "'a.parked'", "'default'", past, "parked", "NULL", series(1)),
		task("'future-' || s.digits", "'a.b'", "CASE WHEN s.n = 0 THEN 'mail' ELSE 'default' END", future, "pending", "NULL", series(n)),
		fmt.Sprintf(`INSERT INTO history (id, func, args, queue, priority, run_at, attempt, uncounted, crashes, max_attempts, timeout_ms,
	version, created_at, status, reason, finished_at)
SELECT 'old-' || s.digits, 'a.b', '{}', 'default', 2, %[1]s, 1, 0, 0, 1, 0, 2, %[1]s,
	CASE WHEN s.n %% 100 = 0 THEN 'error' WHEN s.n %% 100 = 1 THEN 'cancelled' ELSE 'success' END, '',
	CASE WHEN s.n %% 4 < 2 THEN %[1]s ELSE %[2]s END FROM %[3]s`, past, future, series(n)),
	) {
		if _, err := db.Exec(query); err != nil {
			t.Fatalf("%v\n%s", err, query)
		}
	}
}

func plans(t *testing.T, name, driver, dsn string, series func(n int) string, past, future string, explain func(*planned, string, []any)) {
	t.Parallel()
	db, err := sql.Open(driver, dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	d, err := dialect.New(name, planNames(), nil)
	if err != nil {
		t.Fatal(err)
	}
	n, analyze := 1_000_000, "ANALYZE"
	if testing.Short() || name == "mysql" { // there a million takes as long as all the rest
		n = 50_000
	}
	if name == "mysql" {
		analyze = "ANALYZE TABLE tasks, history, processes"
	}
	fill(t, db, d, n, analyze, series, past, future)
	t.Run("statistics of an empty table", func(t *testing.T) { eachPlan(t, db, d, explain) })
	if _, err := db.Exec(analyze); err != nil {
		t.Fatal(err)
	}
	t.Run("fresh statistics", func(t *testing.T) { eachPlan(t, db, d, explain) })
}

func TestPlansOfPostgres(t *testing.T) {
	plans(t, "postgres", "pgx", testdb.PostgresDSN(t), func(n int) string {
		return fmt.Sprintf("(SELECT n, lpad(n::text, 6, '0') AS digits FROM generate_series(0, %d - 1) n) s", n)
	}, "(now() - interval '2 days')", "(now() + interval '1 year')", explainPostgres)
}

// explainPostgres counts the rows that a statement looks at, planned for its parameters and for
// any.
func explainPostgres(p *planned, query string, args []any) {
	literals := make([]string, len(args))
	for i, a := range args {
		literals[i] = "'" + strings.ReplaceAll(fmt.Sprint(a), "'", "''") + "'"
		if a == nil {
			literals[i] = "NULL"
		}
	}
	call := "EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE planned"
	if len(literals) > 0 {
		call += "(" + strings.Join(literals, ", ") + ")"
	}
	for _, mode := range []string{"force_custom_plan", "force_generic_plan"} {
		var text string
		for _, q := range []string{"SAVEPOINT planned", "SET LOCAL plan_cache_mode = " + mode, "PREPARE planned AS " + query} {
			if _, err := p.tx.Exec(q); err != nil {
				p.t.Fatalf("%v\n%s", err, q)
			}
		}
		if err := p.tx.QueryRow(call).Scan(&text); err != nil {
			p.t.Fatalf("%v\n%s", err, query)
		}
		for _, q := range []string{"DEALLOCATE planned", "ROLLBACK TO SAVEPOINT planned"} {
			if _, err := p.tx.Exec(q); err != nil {
				p.t.Fatal(err)
			}
		}
		var plan []struct{ Plan planNode }
		if err := json.Unmarshal([]byte(text), &plan); err != nil {
			p.t.Fatal(err)
		}
		rows, scans := plan[0].Plan.visits()
		if rows > p.bound || len(scans) > 0 || strings.Contains(text, `"JIT"`) {
			p.t.Errorf("%s: it looks at %d rows instead of at most %d, scans %v, or is compiled:\n%s\n%s", mode, rows, p.bound, scans, query, plan[0].Plan)
		}
	}
}

// A transaction that is left open keeps every dead row and every entry of it in the claim's index.
// A claim that begins where the last one ended does not walk over them.
func TestClaimBehindAnOpenSnapshot(t *testing.T) {
	t.Parallel()
	const tasks, group = 20_000, 10
	db, err := sql.Open("pgx", testdb.PostgresDSN(t))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	d, err := dialect.New("postgres", planNames(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, query := range append(d.Schema(),
		"INSERT INTO processes (id, host, pid, functions, slots, started_at, beat_at, beats) VALUES ('p', 'h', 1, '[\"a.b\"]', 1, now(), now(), 1)",
		fmt.Sprintf(`INSERT INTO tasks (id, func, args, queue, priority, run_at, state, attempt, uncounted, crashes, max_attempts, timeout_ms,
	repeatable, version, created_at)
SELECT lpad(n::text, 6, '0'), 'a.b', '{}', 'default', 2, now() - interval '1 hour' + n * interval '1 microsecond', 'pending', 0, 0, 0, 1, 0,
	false, 1, now() FROM generate_series(0, %d - 1) n`, tasks),
	) {
		if _, err := db.Exec(query); err != nil {
			t.Fatalf("%v\n%s", err, query)
		}
	}
	snapshot, err := db.BeginTx(t.Context(), &sql.TxOptions{Isolation: sql.LevelRepeatableRead})
	if err != nil {
		t.Fatal(err)
	}
	defer snapshot.Rollback()
	if _, err := snapshot.Exec("SELECT count(*) FROM tasks"); err != nil {
		t.Fatal(err)
	}

	claim := worked(t, d, db, tasks)
	blocks := func(marks map[dialect.Partition]dialect.Cursor) (n int) {
		tx, err := db.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback()
		q := claim
		q.Limit, q.Cursors = group, marks
		p := &planned{t: t, tx: tx, explain: func(p *planned, query string, args []any) {
			var text string
			if err := p.tx.QueryRow("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) "+query, args...).Scan(&text); err != nil {
				t.Fatal(err)
			}
			var plan []struct {
				Plan struct {
					Hit  int `json:"Shared Hit Blocks"`
					Read int `json:"Shared Read Blocks"`
				}
			}
			if err := json.Unmarshal([]byte(text), &plan); err != nil {
				t.Fatal(err)
			}
			n = plan[0].Plan.Hit + plan[0].Plan.Read
		}}
		// EXPLAIN has claimed by now, so this finds the next ones.
		if err := d.Claim(t.Context(), p, q, func(dialect.Row) error { return nil }); err != nil {
			t.Fatal(err)
		}
		return n
	}
	behind, head := blocks(claim.Cursors), blocks(nil)
	t.Logf("%d blocks for a claim of %d where the last one ended, %d from the head of the partition", behind, group, head)
	if behind > 30*group {
		t.Errorf("a claim of %d tasks touches %d blocks", group, behind)
	}
	if head < 2*behind {
		t.Errorf("from the head %d blocks, after %d: no dead rows were in the way, so nothing was tested", head, behind)
	}
}

// worked claims and finishes all but one of twenty parts of the tasks, and says how the next claim
// begins.
func worked(t *testing.T, d dialect.Dialect, db *sql.DB, tasks int) dialect.ClaimParams {
	t.Helper()
	partition := dialect.Partition{Queue: "default", Priority: 2}
	claim := dialect.ClaimParams{Process: "p", Partitions: []dialect.Partition{partition}, Funcs: []string{"a.b"}, Limit: tasks / 20,
		Cursors: map[dialect.Partition]dialect.Cursor{}}
	version := int64(2)
	for range 19 {
		var outcomes []dialect.Outcome
		var last dialect.Cursor
		if err := d.Claim(t.Context(), db, claim, func(r dialect.Row) error {
			o := dialect.Outcome{Version: &version, Process: "p", Status: "success"}
			dest := make([]any, len(dialect.Columns))
			for i, column := range dialect.Columns {
				switch dest[i] = new(any); column {
				case "id":
					dest[i] = &o.ID
				case "run_at":
					dest[i] = &last.RunAt
				}
			}
			err := r.Scan(dest...)
			outcomes, last.ID = append(outcomes, o), o.ID
			if claim.Cursors[partition].Before(last) {
				claim.Cursors[partition] = last
			}
			return err
		}); err != nil || len(outcomes) != claim.Limit {
			t.Fatal(len(outcomes), err)
		}
		if moved, err := d.Move(t.Context(), db, dialect.FromRunning, outcomes); err != nil || len(moved) != len(outcomes) {
			t.Fatal(len(moved), err)
		}
	}
	return claim
}

type planNode struct {
	Type      string     `json:"Node Type"`
	Relation  string     `json:"Relation Name"`
	Operation string     `json:"Operation"`
	Rows      float64    `json:"Actual Rows"`
	Filtered  float64    `json:"Rows Removed by Filter"`
	Rechecked float64    `json:"Rows Removed by Index Recheck"`
	Loops     float64    `json:"Actual Loops"`
	Plans     []planNode `json:"Plans"`
}

func (n planNode) String() string {
	text := fmt.Sprintf("%s %s %.0f rows, %.0f removed, %.0f times\n", n.Type, n.Relation, n.Rows, n.Filtered+n.Rechecked, n.Loops)
	for _, child := range n.Plans {
		text += "\t" + strings.ReplaceAll(strings.TrimSpace(child.String()), "\n", "\n\t") + "\n"
	}
	return text
}

// visits are the rows of the large tables that were looked at, and those tables that were scanned.
func (n planNode) visits() (rows int, scans []string) {
	if n.Operation == "" && (n.Relation == "tasks" || n.Relation == "history") {
		rows = int((n.Rows + n.Filtered + n.Rechecked) * n.Loops)
		if n.Type == "Seq Scan" && n.Loops > 0 {
			scans = append(scans, n.Relation)
		}
	}
	for _, child := range n.Plans {
		r, s := child.visits()
		rows, scans = rows+r, append(scans, s...)
	}
	return rows, scans
}

func TestPlansOfSQLite(t *testing.T) {
	at := func(offset string) string {
		return "(strftime('%Y-%m-%d %H:%M:%f', 'now', '" + offset + "') || '000+00:00')"
	}
	plans(t, "sqlite", "sqlite3", testdb.SQLiteDSN(t), func(n int) string {
		return fmt.Sprintf("(WITH RECURSIVE c(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM c WHERE n < %d - 1) SELECT n, printf('%%06d', n) AS digits FROM c) s", n)
	}, at("-2 days"), at("+1 year"), explainSQLite)
}

// boundedScan are the parts of SQLite's plans that read a table from its beginning and yet stop
// early: the probe's first row, and the index of the running or the parked tasks, which are few.
var boundedScan = regexp.MustCompile(`^SCAN (tasks|t) USING (COVERING )?INDEX idx_tasks_(claim|process|parked)$`)

// explainSQLite finds scans and sorts; SQLite does not count rows.
func explainSQLite(p *planned, query string, args []any) {
	rows, err := p.tx.Query("EXPLAIN QUERY PLAN "+query, args...)
	if err != nil {
		p.t.Fatalf("%v\n%s", err, query)
	}
	defer rows.Close()
	var lines []string
	bad := false
	for rows.Next() {
		var id, parent, unused int
		var detail string
		if err := rows.Scan(&id, &parent, &unused, &detail); err != nil {
			p.t.Fatal(err)
		}
		lines = append(lines, detail)
		large := regexp.MustCompile(`^SCAN (tasks|history|t|n)\b`).MatchString(detail)
		bad = bad || large && !boundedScan.MatchString(detail) || strings.Contains(detail, "TEMP B-TREE") || strings.Contains(detail, "AUTOMATIC")
	}
	if err := rows.Err(); err != nil {
		p.t.Fatal(err)
	}
	// From partition to partition, an index search by the queue alone would walk through the
	// partition.
	plan := strings.Join(lines, "\n")
	bad = bad || strings.Contains(plan, "(queue>?)") && !strings.Contains(plan, "(queue=? AND priority>?)")
	if bad {
		p.t.Errorf("it scans or sorts:\n%s\n%s", query, plan)
	}
}
