package dialect_test

import (
	"database/sql"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gorm-outbox/outbox/internal/dialect"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

// What TestClaimBehindAnOpenSnapshot shows of PostgreSQL: on MariaDB, too, the entries that claimed
// rows have had in the claim's index stay there until no transaction can see them as they were. The
// handlers' counters do not tell, for these entries are passed over below them; MySQL tells of no
// pages.
func TestClaimBehindAnOpenSnapshotOfMariaDB(t *testing.T) {
	t.Parallel()
	const tasks, group = 20_000, 10
	db, err := sql.Open("mysql", testdb.MariaDBDSN(t))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	d, err := dialect.New("mysql", planNames(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, query := range append(d.Schema(),
		`INSERT INTO processes (id, host, pid, functions, slots, started_at, beat_at, beats) VALUES ('p', 'h', 1, '["a.b"]', 1, UTC_TIMESTAMP(6), UTC_TIMESTAMP(6), 1)`) {
		if _, err := db.Exec(query); err != nil {
			t.Fatalf("%v\n%s", err, query)
		}
	}
	rows, first := make([]dialect.NewRow, tasks), time.Now().Add(-time.Hour)
	for i := range rows {
		at := d.Time(first.Add(time.Duration(i) * time.Microsecond))
		rows[i] = dialect.NewRow{ID: fmt.Sprintf("%06d", i), Func: "a.b", Args: "{}", Queue: "default", Priority: 2, At: &at, MaxAttempts: 1}
	}
	if err := d.Insert(t.Context(), db, rows, func(dialect.Row) error { return nil }); err != nil {
		t.Fatal(err)
	}
	snapshot, err := db.BeginTx(t.Context(), &sql.TxOptions{Isolation: sql.LevelRepeatableRead})
	if err != nil {
		t.Fatal(err)
	}
	defer snapshot.Rollback()
	var n int
	if err := snapshot.QueryRow("SELECT count(*) FROM tasks").Scan(&n); err != nil || n != tasks {
		t.Fatal(n, err)
	}

	claim := worked(t, d, db, tasks)
	pages := func(marks map[dialect.Partition]dialect.Cursor) (n int) {
		tx, err := db.BeginTx(t.Context(), &sql.TxOptions{Isolation: d.Isolation()})
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback()
		q := claim
		q.Limit, q.Cursors = group, marks
		p := &planned{t: t, tx: tx, explain: func(p *planned, query string, args []any) {
			if !strings.HasPrefix(strings.TrimSpace(query), "SELECT") {
				return // what it changes it looks up by its id
			}
			var text string
			if err := p.tx.QueryRow("ANALYZE FORMAT=JSON "+query, args...).Scan(&text); err != nil {
				t.Skipf("this server does not tell what it reads: %v", err)
			}
			for _, found := range accessed.FindAllStringSubmatch(text, -1) {
				pages, err := strconv.Atoi(found[1])
				if err != nil {
					t.Fatal(err)
				}
				n += pages
			}
		}}
		found := 0
		if err := d.Claim(t.Context(), p, q, func(dialect.Row) error { found++; return nil }); err != nil || found != group {
			t.Fatal(found, err)
		}
		if n == 0 {
			t.Skip("this server does not tell what it reads")
		}
		return n
	}
	behind, head := pages(claim.Cursors), pages(nil)
	t.Logf("%d pages for a claim of %d where the last one ended, %d from the head of the partition", behind, group, head)
	if behind > 10*group {
		t.Errorf("a claim of %d tasks touches %d pages", group, behind)
	}
	if head < 10*behind {
		t.Errorf("from the head %d pages, after %d: no dead entries were in the way, so nothing was tested", head, behind)
	}
}

var accessed = regexp.MustCompile(`"pages_accessed": (\d+)`)
