package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/gorm-outbox/outbox/internal/dialect"
)

// Task is a row of the task table. Documents are JSON as it is stored; Errors and Meta are nil
// where the column is NULL.
type Task struct {
	ID          string
	Func        string
	Args        string
	Key         *string
	Queue       string
	Priority    int
	RunAt       time.Time
	State       string
	Attempt     int
	Uncounted   int
	Crashes     int
	MaxAttempts int
	TimeoutMS   int64
	Repeatable  bool
	Version     int64
	ProcessID   *string
	RerunOf     *string
	Errors      *string
	Meta        *string
	CreatedAt   time.Time
	StartedAt   *time.Time
}

// Owner is the id of the process that runs the task; empty when none does.
func (t *Task) Owner() string { return deref(t.ProcessID) }

// History is a row of the history table. Documents are as in Task.
type History struct {
	ID          string
	Func        string
	Args        string
	Key         *string
	Queue       string
	Priority    int
	RunAt       time.Time
	Attempt     int
	Uncounted   int
	Crashes     int
	MaxAttempts int
	TimeoutMS   int64
	Version     int64
	ProcessID   *string
	RerunOf     *string
	Errors      *string
	Meta        *string
	CreatedAt   time.Time
	StartedAt   *time.Time
	Status      string
	Reason      string
	Result      *string
	Error       *string
	FinishedAt  time.Time
	RerunID     *string
}

// States of a task.
const (
	Pending = "pending"
	Running = "running"
	Parked  = "parked"
)

// Statuses of a task that has ended.
const (
	Success   = "success"
	Error     = "error"
	Cancelled = "cancelled"
)

// fields are where a statement's row of dialect.Columns goes.
func (t *Task) fields() []any {
	return []any{
		&t.ID, &t.Func, &t.Args, &t.Key, &t.Queue, &t.Priority, instant{&t.RunAt}, &t.State, &t.Attempt, &t.Uncounted,
		&t.Crashes, &t.MaxAttempts, &t.TimeoutMS, &t.Repeatable, &t.Version, &t.ProcessID, &t.RerunOf, &t.Errors, &t.Meta,
		instant{&t.CreatedAt}, nullInstant{&t.StartedAt},
	}
}

// Task reads a row of the task table; nil when it has none. latest has it read what is committed
// now, where an open transaction would see its first read's time.
func (s *Store) Task(ctx context.Context, c dialect.Conn, id string, latest bool) (*Task, error) {
	var found *Task
	err := s.query(ctx, c, "SELECT {columns} FROM {tasks} WHERE id = ?"+s.latest(latest), []any{id}, func(r *sql.Rows) error {
		found = new(Task)
		return r.Scan(found.fields()...)
	})
	return found, s.Explain(err)
}

// History reads a row of history; nil when it has none. latest is as in Task.
func (s *Store) History(ctx context.Context, c dialect.Conn, id string, latest bool) (*History, error) {
	const query = `SELECT id, func, args, {key}, queue, priority, run_at, attempt, uncounted, crashes, max_attempts, timeout_ms,
	version, process_id, rerun_of, errors, meta, created_at, started_at, status, reason, result, error, finished_at, rerun_id
FROM {history} WHERE id = ?`
	var found *History
	err := s.query(ctx, c, query+s.latest(latest), []any{id}, func(r *sql.Rows) error {
		h := new(History)
		found = h
		return r.Scan(&h.ID, &h.Func, &h.Args, &h.Key, &h.Queue, &h.Priority, instant{&h.RunAt}, &h.Attempt, &h.Uncounted,
			&h.Crashes, &h.MaxAttempts, &h.TimeoutMS, &h.Version, &h.ProcessID, &h.RerunOf, &h.Errors, &h.Meta,
			instant{&h.CreatedAt}, nullInstant{&h.StartedAt}, &h.Status, &h.Reason, &h.Result, &h.Error,
			instant{&h.FinishedAt}, &h.RerunID)
	})
	return found, s.Explain(err)
}

func (s *Store) latest(yes bool) string {
	if yes {
		return s.Dialect.Latest()
	}
	return ""
}

// Claimed is a row that a process has claimed. Of one that cannot be read, Task has little more
// than the fence, and Err says why.
type Claimed struct {
	Task *Task
	Err  error
}

// claimScan reads the rows of one statement. The zero value is ready.
type claimScan struct {
	task Task
	dest []any // its fields
}

func (s *claimScan) claimed(r dialect.Row) Claimed {
	if s.dest == nil {
		s.dest = s.task.fields()
	}
	s.task = Task{}
	err := r.Scan(s.dest...)
	if err == nil {
		t := s.task
		return Claimed{Task: &t}
	}
	// Another program has written values of other types into the row, as SQLite allows. Fetch what
	// can be fetched.
	loose := new(Task)
	var queue, function sql.NullString
	var priority any
	dest := make([]any, len(dialect.Columns))
	for i, column := range dialect.Columns {
		switch column {
		case "id":
			dest[i] = &loose.ID
		case "version":
			dest[i] = &loose.Version
		case "func":
			dest[i] = &function
		case "queue":
			dest[i] = &queue
		case "priority":
			dest[i] = &priority
		case "process_id":
			dest[i] = &loose.ProcessID
		default:
			dest[i] = new(any)
		}
	}
	if again := r.Scan(dest...); again != nil {
		err = errors.Join(err, again)
	}
	loose.MaxAttempts, loose.Attempt = 1, 1
	loose.Func, loose.Queue = function.String, queue.String
	loose.Priority, _ = strconv.Atoi(fmt.Sprint(priority)) // else the partition looks emptied, until the next poll
	return Claimed{Task: loose, Err: fmt.Errorf("the row cannot be read: %w", err)}
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
