package dialect_test

import (
	"database/sql"
	"fmt"
	"testing"
	"time"

	"github.com/gorm-outbox/outbox/internal/dialect"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

// A refill reads neither what an earlier claim has passed over nor leaves out what has the start
// time of its mark.
func TestRefillOfSQLiteBeginsAtTheCursor(t *testing.T) {
	t.Parallel()
	db, err := sql.Open("sqlite3", testdb.SQLiteDSN(t))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	d, err := dialect.New("sqlite", planNames(), nil)
	if err != nil {
		t.Fatal(err)
	}
	start := time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
	statements := append(d.Schema(), "INSERT INTO processes (id, host, pid, functions, slots, started_at, beat_at, beats) "+
		"VALUES ('p', 'h', 1, '[\"a.b\"]', 1, '"+d.Time(start)+"', '"+d.Time(start)+"', 1)")
	for i := range 3 {
		statements = append(statements, fmt.Sprintf(`INSERT INTO tasks (id, func, args, queue, priority, run_at, state, attempt, uncounted,
			crashes, max_attempts, timeout_ms, repeatable, version, created_at)
			VALUES ('%d', 'a.b', '{}', 'default', 2, '%s', 'pending', 0, 0, 0, 1, 0, false, 1, '%[2]s')`, i, d.Time(start.Add(time.Duration(i)*time.Second))))
	}
	for _, query := range statements {
		if _, err := db.Exec(query); err != nil {
			t.Fatalf("%v\n%s", err, query)
		}
	}
	partition := dialect.Partition{Queue: "default", Priority: 2}
	claim := dialect.ClaimParams{Process: "p", Partitions: []dialect.Partition{partition}, Funcs: []string{"a.b"}, Limit: 10,
		Cursors: map[dialect.Partition]dialect.Cursor{partition: {RunAt: start.Add(time.Second), ID: "1"}}}
	n := 0
	count := func(dialect.Row) error { n++; return nil }
	if err := d.Claim(t.Context(), db, claim, count); err != nil || n != 2 {
		t.Errorf("%d are claimed from the mark on instead of 2, %v", n, err)
	}
	claim.Cursors = nil
	if err := d.Claim(t.Context(), db, claim, count); err != nil || n != 3 {
		t.Errorf("%d are claimed in all instead of 3, %v", n, err)
	}
}
