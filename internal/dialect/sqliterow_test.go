package dialect_test

import (
	"database/sql"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/gorm-outbox/outbox/internal/dialect"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

// A claim on SQLite brings each row as one text, which must hold what the columns do.
func TestSQLiteRowsComeAsTheyAre(t *testing.T) {
	db, d := emptySQLite(t)
	var control strings.Builder
	for c := range rune(0x20) {
		control.WriteRune(c)
	}
	values := []any{
		``, `{"n":9007199254740993,"s":"a\"b\\c\u0041\n"}`, `"`, `\`, `\\"`, `[1,null]`, `]`, `,`, `null`, control.String() + "\x7f", "é🙂\u2028",
		"\xff\xfe no UTF-8 \xc3", strings.Repeat(`\"`, 5000), nil, int64(-9223372036854775808), 1.5,
	}
	for _, blob := range []bool{false, true} {
		if blob {
			values = append(values, []byte("\x00bytes"))
		}
		for i, v := range values {
			_, err := db.Exec(`INSERT INTO tasks (id, func, args, key, queue, priority, run_at, state, attempt, uncounted, crashes, max_attempts,
				timeout_ms, repeatable, version, rerun_of, errors, meta, created_at)
				VALUES (?, 'a.b', coalesce(?, 'x'), NULL, 'default', 2, '2026-01-02 03:04:05.678901+00:00', 'pending', 0, 0, 0, ?, 0, 0, 9223372036854775800,
				?, ?, ?, '2026-01-02 03:04:05.678901+00:00')`, fmt.Sprintf("%v-%d", blob, i), v, i, v, v, v)
			if err != nil {
				t.Fatal(err)
			}
		}
		read := func(r dialect.Row) (id string, row string) {
			var n int64
			var repeatable bool
			dest := make([]any, len(dialect.Columns))
			for i, column := range dialect.Columns {
				switch column {
				case "id":
					dest[i] = &id
				case "version":
					dest[i] = &n
				case "repeatable":
					dest[i] = &repeatable
				case "run_at", "created_at", "started_at": // which some drivers make times of
					dest[i] = new(any)
				case "key", "process_id", "rerun_of", "errors", "meta":
					dest[i] = new(*string)
				default:
					dest[i] = new(string)
				}
			}
			if err := r.Scan(dest...); err != nil {
				t.Fatal(err)
			}
			for i := range dest {
				switch p := dest[i].(type) {
				case **string:
					if *p == nil {
						row += " NULL"
					} else {
						row += fmt.Sprintf(" %q", **p)
					}
				case *string:
					row += fmt.Sprintf(" %q", *p)
				}
			}
			return id, row + fmt.Sprint(n, repeatable)
		}
		got := map[string]string{}
		claim := dialect.ClaimParams{Process: "p", Partitions: []dialect.Partition{{Queue: "default", Priority: 2}}, Funcs: []string{"a.b"},
			Repeatable: []string{"a.b"}, Limit: 1000}
		if err := d.Claim(t.Context(), db, claim, func(r dialect.Row) error {
			id, row := read(r)
			got[id] = row
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		rows, err := db.Query("SELECT " + strings.Join(dialect.Columns, ", ") + " FROM tasks WHERE state = 'running'")
		if err != nil {
			t.Fatal(err)
		}
		for rows.Next() {
			if id, want := read(rows); got[id] != want {
				t.Errorf("%s:\n got %s\nwant %s", id, got[id], want)
			}
		}
		if err := rows.Close(); err != nil || len(got) != len(values) {
			t.Fatal(len(got), err)
		}
		if _, err := db.Exec("DELETE FROM tasks"); err != nil {
			t.Fatal(err)
		}
	}
}

// A group may hold outcomes of two claims of one task, when it was taken away from the first run
// and came back.
func TestSQLiteFinishKnowsTwoClaimsOfATaskApart(t *testing.T) {
	db, d := emptySQLite(t)
	lost, current := int64(2), int64(5)
	const odd = "o\"d\\d\n é" // somebody's own id
	outcomes := []dialect.Outcome{{ID: odd, Version: &lost, Status: "success"}, {ID: "twice", Version: &lost, Status: "success"}, {ID: "twice", Version: &current, Status: "success"},
		{ID: "once", Version: &lost, Status: "success"}}
	for range 2 {
		for id, version := range map[string]int64{"twice": current, "once": lost, odd: lost} {
			if _, err := db.Exec(`INSERT INTO tasks (id, func, args, queue, priority, run_at, state, attempt, uncounted, crashes, max_attempts,
				timeout_ms, repeatable, version, created_at) VALUES (?, 'a.b', '{}', 'default', 2, '2026', 'running', 1, 0, 0, 1, 0, 0, ?, '2026')`,
				id, version); err != nil {
				t.Fatal(err)
			}
		}
		moved, err := d.Move(t.Context(), db, dialect.FromRunning, outcomes)
		if slices.Sort(moved); err != nil || !slices.Equal(moved, []string{odd, "once", "twice"}) {
			t.Errorf("moved %v, %v", moved, err)
		}
		var left int
		if err := db.QueryRow("SELECT count(*) FROM tasks").Scan(&left); err != nil || left != 0 {
			t.Errorf("%d tasks are left, %v", left, err)
		}
		if _, err := db.Exec("DELETE FROM history"); err != nil {
			t.Fatal(err)
		}
		slices.Reverse(outcomes)
	}
}

func emptySQLite(t *testing.T) (*sql.DB, dialect.Dialect) {
	t.Helper()
	db, err := sql.Open("sqlite3", testdb.SQLiteDSN(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	d, err := dialect.New("sqlite", planNames(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range append(d.Schema(), "INSERT INTO processes VALUES ('p', 'h', 1, '[]', NULL, 100, '2026', '2026', 1)") {
		if _, err := db.Exec(s); err != nil {
			t.Fatal(err)
		}
	}
	return db, d
}
