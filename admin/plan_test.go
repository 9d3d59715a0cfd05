package admin_test

import (
	"context"
	"database/sql"
	"errors"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/admin"
	"github.com/gorm-outbox/outbox/internal/dbtest"
)

// listener keeps the statements that go through GORM.
type listener struct {
	logger.Interface
	mu   sync.Mutex
	said []string
}

func (l *listener) Trace(_ context.Context, _ time.Time, fc func() (string, int64), _ error) {
	text, _ := fc()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.said = append(l.said, text)
}

func (l *listener) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	said := l.said
	l.said = nil
	return said
}

// walks finds, in a database's plan, a table that is read from its beginning: PostgreSQL's Seq
// Scan, SQLite's SCAN without an index, and MariaDB's ALL.
var walks = regexp.MustCompile(`(?m)Seq Scan on outbox_(?:tasks|history).*|SCAN outbox_(?:tasks|history)(?: *$)|^outbox_(?:tasks|history) ALL.*`)

// TestPlans asks the database how it answers each page: there is an index for all that a page reads
// of the two big tables, and counts end.
func TestPlans(t *testing.T) {
	dbtest.EachInTurn(t, func(t *testing.T, db *gorm.DB) {
		heard := &listener{Interface: db.Logger}
		db.Logger = heard
		d := open(t, db, admin.Options{})
		rows := "20000"
		if db.Name() == "mysql" {
			rows = "150000" // of fewer MySQL rightly reads all, for a count that ends at ten thousand
		}
		fill(t, db, rows)
		some := d.create(outbox.Key("the-one"), outbox.StartAfter(time.Hour))
		for _, page := range []string{"", "tasks", "tasks?state=pending", "tasks?state=scheduled", "tasks?state=running", "tasks?state=parked",
			"tasks?state=failed", "tasks?state=handled", "tasks?state=done", "tasks?state=cancelled", "tasks?key=key-77",
			"tasks?state=done&key=key-77", "tasks?id=" + some.ID, "tasks?state=running&process=p-1", "tasks?state=failed&func=nobody", "tasks?state=running&func=nobody", "tasks?state=parked&func=nobody", "tasks/" + some.ID, "functions", "export?format=csv&state=failed"} {
			again := open2(t, d)
			heard.take()
			status(t, again.get(page), 200)
			said := heard.take()
			if len(said) == 0 {
				t.Errorf("%q asks nothing", page)
			}
			failures := 0
			for _, text := range said {
				if strings.Contains(text, "count(") && strings.Contains(text, "'error'") {
					failures++
				}
				if strings.Contains(text, "count(*)") && !strings.Contains(text, "LIMIT") && !strings.Contains(text, "process_id") {
					t.Errorf("%q counts without an end:\n%s", page, text)
				}
				if !strings.HasPrefix(text, "SELECT") {
					continue
				}
				if plan := explain(t, db, text); walks.MatchString(plan) {
					t.Errorf("%q walks a table:\n%s\n%s", page, text, plan)
				}
			}
			if page == "tasks" && failures != 1 {
				t.Errorf("the failures, of which each may be on a page of its own, are read %d times to be counted", failures)
			}
		}
	})
}

func explain(t *testing.T, db *gorm.DB, text string) string {
	t.Helper()
	how := "EXPLAIN "
	if db.Name() == "sqlite" {
		how = "EXPLAIN QUERY PLAN "
	} else if db.Name() == "mysql" {
		how = "EXPLAIN FORMAT=TRADITIONAL " // MySQL's own default is a text
	}
	pool, err := db.DB()
	must(t, err)
	conn, err := pool.Conn(t.Context())
	must(t, err)
	defer conn.Close()
	if db.Name() == "postgres" {
		// Where nearly all rows match, the beginning of the table is cheaper than the index, and
		// right. What matters is whether there is an index for the day on which few match.
		_, err := conn.ExecContext(t.Context(), "SET enable_seqscan = off")
		must(t, err)
		defer conn.ExecContext(context.WithoutCancel(t.Context()), "RESET enable_seqscan")
	}
	rows, err := conn.QueryContext(t.Context(), how+text)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	defer rows.Close()
	columns, err := rows.Columns()
	must(t, err)
	var plan strings.Builder
	for rows.Next() {
		cells := make([]any, len(columns))
		texts := make([]sql.NullString, len(columns))
		for i := range cells {
			cells[i] = &texts[i]
		}
		must(t, rows.Scan(cells...))
		line := texts[len(texts)-1].String
		if db.Name() == "mysql" { // where the columns are id, select_type, table, type and so on
			line = texts[slices.Index(columns, "table")].String + " " + texts[slices.Index(columns, "type")].String + " " + line
		}
		plan.WriteString(line + "\n")
	}
	must(t, errors.Join(rows.Err(), rows.Close()))
	return plan.String()
}
