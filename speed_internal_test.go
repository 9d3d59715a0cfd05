package outbox

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"reflect"
	"strconv"
	"testing"
	"time"

	"github.com/google/uuid"
	"gorm.io/gorm/schema"

	"github.com/gorm-outbox/outbox/internal/dialect"
)

// What one task costs this process, without a database: compare with benchstat. What the statements cost is for make bench.

type speedArgs struct {
	OrderID  int64     `json:"orderId"`
	Reason   string    `json:"reason"`
	Deadline time.Time `json:"deadline"`
	Lines    []string  `json:"lines,omitempty"`
}

var speedExample = speedArgs{
	OrderID: 9007199254740993, Reason: "not paid in time", Deadline: time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC),
	Lines: []string{"4711", "4712", "4713"},
}

// BenchmarkEncode encodes and checks the arguments of one creation.
func BenchmarkEncode(b *testing.B) {
	for name, args := range map[string]any{
		"struct": speedExample,
		"map":    Args{"orderId": speedExample.OrderID, "reason": speedExample.Reason, "lines": speedExample.Lines},
		"none":   nil,
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := encodeArgs(nil, args, 64<<10); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkCheck finds out whether arguments of one creation, encoded already, can be bound.
func BenchmarkCheck(b *testing.B) {
	raw, err := encodeArgs(nil, speedExample, 64<<10)
	if err != nil {
		b.Fatal(err)
	}
	h, err := newHandler("speed.check", reflect.ValueOf(func(context.Context, speedArgs) error { return nil }))
	if err != nil {
		b.Fatal(err)
	}
	for name, args := range map[string]any{"own": speedExample, "map": Args{}} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := h.param.Check(args, raw); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkBind decodes stored arguments for one run.
func BenchmarkBind(b *testing.B) {
	raw, err := encodeArgs(nil, speedExample, 64<<10)
	if err != nil {
		b.Fatal(err)
	}
	for name, fn := range map[string]any{
		"struct": func(context.Context, speedArgs) error { return nil },
		"map":    func(context.Context, Args) error { return nil },
	} {
		b.Run(name, func(b *testing.B) {
			h, err := newHandler("speed.bind", reflect.ValueOf(fn))
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := h.param.Bind(raw); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

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
			if c := scan.claimed(rows); c.err != nil || c.task.ID != id {
				b.Fatalf("%+v", c)
			}
			got++
		}
		if err := rows.Err(); err != nil || got != n {
			b.Fatalf("%d rows, %v", got, err)
		}
	}
}

// BenchmarkRun runs 100 claimed tasks, from the claim's reply to the free slots; nothing is written.
func BenchmarkRun(b *testing.B) {
	raw, err := encodeArgs(nil, speedExample, 64<<10)
	if err != nil {
		b.Fatal(err)
	}
	p := New(Options{Logger: slog.New(slog.DiscardHandler)})
	p.Handle("speed.run", func(context.Context, speedArgs) error { return nil })
	d := p.newDispatcher(&store{d: memDialect{m: newMemory(false)}})
	defer close(d.drain)
	d.lease.lastBeat = time.Now().Add(time.Hour)
	list, done := make([]claimed, 100), map[string]bool{}
	for i := range list {
		list[i].task = &TaskModel{ID: strconv.Itoa(i), Func: "speed.run", Args: raw, ProcessID: &d.lease.id, MaxAttempts: 1, Attempt: 1}
		done[list[i].task.ID] = true
	}
	b.ReportAllocs()
	for b.Loop() {
		d.start(list)
		for n := 0; n < len(list); {
			group := d.completer.take()
			if n += len(group); len(group) == 0 {
				<-d.completer.signal
			}
			d.completer.persisted(group, fenced{ids: done})
			d.completer.written()
		}
		for d.slots.free() < d.slots.total {
			<-d.wakeups.signal
			d.wakeups.take()
		}
	}
}

// BenchmarkFinishEncode makes the parameters of a finish of 100 tasks.
func BenchmarkFinishEncode(b *testing.B) {
	failed := "the customer's bank says no"
	for name, o := range map[string]dialect.Outcome{
		"success": {Status: string(StatusSuccess)},
		"error":   {Status: string(StatusError), Reason: string(ReasonFailed), Error: &failed},
	} {
		for _, database := range dialect.Supported() {
			b.Run(fmt.Sprintf("%s/%s", name, database), func(b *testing.B) {
				d, err := dialect.New(database, names(schema.NamingStrategy{}), nil)
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
