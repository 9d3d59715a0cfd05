package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/gorm-outbox/outbox/internal/dialect"
)

// What the statements of one group cost this process, without a database: compare with benchstat.

// BenchmarkClaimScan reads the rows of a claim of 100 tasks.
func BenchmarkClaimScan(b *testing.B) {
	const n = 100
	id, now := uuid.Must(uuid.NewV7()).String(), time.Now()
	values := map[string]driver.Value{
		"id": id, "func": "orders.checkAndCancel", "args": `{"orderId":9007199254740993,"reason":"not paid in time"}`, "queue": "default",
		"priority": int64(2), "run_at": now, "state": "running", "attempt": int64(1), "uncounted": int64(0), "crashes": int64(0),
		"max_attempts": int64(1), "timeout_ms": int64(0), "repeatable": false, "version": int64(2), "process_id": id, "created_at": now,
		"started_at": now,
	}
	row := make([]driver.Value, len(dialect.Columns))
	for i, column := range dialect.Columns {
		row[i] = values[column]
	}
	db := sql.OpenDB(&speedDriver{columns: dialect.Columns, row: row, n: n})
	defer db.Close()
	b.ReportAllocs()
	for b.Loop() {
		rows, err := db.Query("claim")
		if err != nil {
			b.Fatal(err)
		}
		got := 0
		var scan claimScan
		for rows.Next() {
			if c := scan.claimed(rows); c.Err != nil || c.Task.ID != id {
				b.Fatalf("%+v", c)
			}
			got++
		}
		if err := rows.Err(); err != nil || got != n {
			b.Fatalf("%d rows, %v", got, err)
		}
	}
}

// BenchmarkFinishEncode makes the parameters of a finish of 100 tasks.
func BenchmarkFinishEncode(b *testing.B) {
	failed := "the customer's bank says no"
	for name, o := range map[string]dialect.Outcome{
		"success": {Status: Success},
		"error":   {Status: Error, Reason: "failed", Error: &failed},
	} {
		for _, database := range dialect.Supported() {
			b.Run(fmt.Sprintf("%s/%s", name, database), func(b *testing.B) {
				d, err := dialect.New(database, dialect.Names{Index: func(table, what string) string { return table + what }}, nil)
				if err != nil {
					b.Fatal(err)
				}
				db := sql.OpenDB(&speedDriver{columns: []string{"id"}})
				defer db.Close()
				conn := struct{ dialect.Conn }{db} // not a pool, on which some would begin a transaction
				outcomes, version := make([]dialect.Outcome, 100), int64(2)
				for i := range outcomes {
					outcomes[i] = o
					outcomes[i].ID, outcomes[i].Version, outcomes[i].Process = uuid.Must(uuid.NewV7()).String(), &version, "01a224ab-db41-7338-8e49-49cae348c17c"
				}
				b.ReportAllocs()
				for b.Loop() {
					if _, err := d.Move(context.Background(), conn, dialect.FromRunning, outcomes); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// speedDriver answers every query at once, with the same row n times.
type speedDriver struct {
	columns []string
	row     []driver.Value
	n       int
}

func (d *speedDriver) Driver() driver.Driver                        { return nil }
func (d *speedDriver) Connect(context.Context) (driver.Conn, error) { return speedConn{d}, nil }

type speedConn struct{ d *speedDriver }

func (speedConn) Prepare(string) (driver.Stmt, error) { return nil, errors.ErrUnsupported }
func (speedConn) Begin() (driver.Tx, error)           { return nil, errors.ErrUnsupported }
func (speedConn) Close() error                        { return nil }

func (c speedConn) QueryContext(context.Context, string, []driver.NamedValue) (driver.Rows, error) {
	return &speedRows{d: c.d}, nil
}

func (speedConn) ExecContext(context.Context, string, []driver.NamedValue) (driver.Result, error) {
	return driver.RowsAffected(0), nil
}

type speedRows struct {
	d    *speedDriver
	next int
}

func (r *speedRows) Columns() []string { return r.d.columns }
func (r *speedRows) Close() error      { return nil }
func (r *speedRows) Next(dest []driver.Value) error {
	if r.next == r.d.n {
		return io.EOF
	}
	r.next++
	copy(dest, r.d.row)
	return nil
}
