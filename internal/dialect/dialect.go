// Package dialect holds everything that differs between databases: the schema, the statements that
// change state, the database's clock and the meaning of its errors. Each database has files named
// after it and one SQL template. Code outside this package names no database.
//
// The text of a statement does not depend on the number of rows, so drivers prepare it once: a
// group of rows is passed as one JSON array in one parameter. Only the text of PostgreSQL's claim
// contains its size, rounded up to a power of two. JSON documents are strings inside that array,
// because SQLite's json_each would turn the integers of a nested document into floats.
package dialect

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// Conn executes statements: it is a pool, a connection or a transaction.
type Conn interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// Row is one row of a result: *sql.Rows, or a row that a dialect has read in another way.
type Row interface {
	Scan(dest ...any) error
}

// Names are the tables of one plugin, named by GORM's naming strategy: unquoted, and qualified by a
// schema or not.
type Names struct {
	Tasks, History, Processes, Audit, Version string

	// Schema is the schema of the tables whose names are not qualified. Empty means the session's.
	Schema string

	// Index names an index of a table.
	Index func(table, what string) string
}

// place splits a table's name into its schema and its name in that schema. The schema is empty if
// it is the session's.
func (n Names) place(table string) (schema, bare string) {
	if i := strings.LastIndexByte(table, '.'); i >= 0 {
		return table[:i], table[i+1:]
	}
	return n.Schema, table
}

// Partition is one queue at one priority. The claim's index holds its tasks in the order of run_at.
type Partition struct {
	Queue    string `json:"queue"`
	Priority int    `json:"priority"`
}

// Cursor is a place in a partition: a task's start time and, among equals, its id.
type Cursor struct {
	RunAt time.Time
	ID    string
}

// Before reports whether m comes earlier in the partition.
func (m Cursor) Before(o Cursor) bool {
	return m.RunAt.Before(o.RunAt) || m.RunAt.Equal(o.RunAt) && m.ID < o.ID
}

// PartitionState is the state of a partition in a poll.
type PartitionState struct {
	Partition
	Due bool // a task is due
	// Time until the partition's next task that is not due yet; negative when it has none.
	Next time.Duration
}

// NewRow is a task to insert. Values that most tasks leave empty are omitted from the parameter.
type NewRow struct {
	ID       string  `json:"id"`
	Func     string  `json:"func"`
	Args     string  `json:"args"`
	Key      *string `json:"key,omitempty"`
	Queue    string  `json:"queue"`
	Priority int     `json:"priority"`
	At       *string `json:"at,omitempty"` // start time from Time; nil means DelayUS from now
	// Past: At is not in the future of the caller's clock, so the start time is at most now.
	Past        bool    `json:"past,omitempty"`
	DelayUS     int64   `json:"delay,omitempty"` // microseconds
	MaxAttempts int     `json:"max_attempts"`
	TimeoutMS   int64   `json:"timeout_ms,omitempty"`
	RerunOf     *string `json:"rerun_of,omitempty"`
	Meta        *string `json:"meta,omitempty"`
}

// Outcome ends a task: its row moves to history. Values that most outcomes leave empty are omitted
// from the parameter.
type Outcome struct {
	ID      string `json:"id"`
	Version *int64 `json:"version"` // the fence; nil means any version
	// Process is part of the fence of a running task, too: after a failover, another process may
	// have claimed the same version.
	Process string  `json:"process,omitempty"`
	Status  string  `json:"status"`
	Reason  string  `json:"reason,omitempty"`
	Result  *string `json:"result,omitempty"`
	Error   *string `json:"error,omitempty"`
	Errors  *string `json:"errors,omitempty"`
	Crashes int     `json:"crashes,omitempty"` // added to the row's crashes
}

// Requeued puts a running task back to pending.
type Requeued struct {
	ID        string  `json:"id"`
	Version   int64   `json:"version"`           // the fence
	Process   string  `json:"process,omitempty"` // part of the fence, too
	DelayUS   int64   `json:"delay"`             // microseconds from now
	Uncounted int     `json:"uncounted"`
	Crashes   int     `json:"crashes"`
	Errors    *string `json:"errors"`
}

// ClaimParams says which process claims which tasks.
type ClaimParams struct {
	Process    string
	Partitions []Partition // in the order of preference
	Funcs      []string    // only tasks of these functions
	Repeatable []string    // the Funcs whose interrupted runs may be run again
	Limit      int         // maximum number of rows
	Share      int         // maximum number of rows from each partition; 0 means Limit
	Until      string      // only rows due at this time, as Time formats it; empty means now

	// Cursors say where a claim begins in a partition. In some databases a scan walks over the
	// index entries of deleted rows for as long as a transaction may still see these rows. Such a
	// database claims only rows behind the cursor. Other databases may ignore it.
	Cursors map[Partition]Cursor
}

// share is the number of rows of a partition that may be claimed when left more rows may be claimed
// in total.
func (p ClaimParams) share(left int) int {
	if p.Share > 0 {
		return min(p.Share, left)
	}
	return left
}

// partitionCursor is a partition with its cursor, as a parameter.
type partitionCursor struct {
	Partition
	RunAt *string `json:"run_at"`
	ID    string  `json:"id"`
}

// marked returns the partitions with their cursors. A partition without a cursor gets head as its
// start time.
func (p ClaimParams) marked(format func(time.Time) string, head *string) []partitionCursor {
	partitions := make([]partitionCursor, len(p.Partitions))
	for i, l := range p.Partitions {
		partitions[i] = partitionCursor{Partition: l, RunAt: head}
		if m, ok := p.Cursors[l]; ok {
			at := format(m.RunAt)
			partitions[i].RunAt, partitions[i].ID = &at, m.ID
		}
	}
	return partitions
}

// From says which states a row may be in for Move to take it.
type From int

const (
	FromRunning From = iota // a completion
	FromWaiting             // a cancellation: pending or parked
)

// Dialect is one database, with its statements rendered for the tables of one plugin.
type Dialect interface {
	Name() string

	// Serial reports that only one transaction at a time can write, so transactional handlers run
	// one after another.
	Serial() bool

	// Keep reports that statements should be kept prepared, because drivers would otherwise prepare
	// a statement each time that it is executed.
	Keep() bool

	// OneStatement reports that Claim and Move are one statement each, so they need no transaction
	// to be all or nothing.
	OneStatement() bool

	// Time formats an instant as a parameter. Instant turns the parameter into a value.
	Time(t time.Time) string

	// Now is an SQL expression for the time of the database's clock. It can be an index condition.
	Now() string
	// Instant is an SQL expression for the instant in the next parameter, formatted by Time.
	Instant() string
	// Rebind turns the question marks of a portable statement into this database's placeholders,
	// and {tasks}, {history}, {processes}, {audit} and {now} into names. {key} and {before} are
	// columns whose names are reserved in some databases.
	Rebind(query string) string

	Insert(ctx context.Context, c Conn, rows []NewRow, each func(Row) error) error
	Poll(ctx context.Context, c Conn) ([]PartitionState, error)
	Clock(ctx context.Context, c Conn) (string, error)
	Claim(ctx context.Context, c Conn, p ClaimParams, each func(Row) error) error
	// Move moves rows from tasks to history and returns the ids that passed the fence. If history
	// already has an id, as after a restored backup, its row is only deleted from the task table.
	Move(ctx context.Context, c Conn, from From, rows []Outcome) ([]string, error)
	Requeue(ctx context.Context, c Conn, rows []Requeued) ([]string, error)
	Park(ctx context.Context, c Conn, partitions []Partition, limit int) ([]string, error)
	Unpark(ctx context.Context, c Conn, funcs, queues []string, limit int) (int64, error)
	Orphans(ctx context.Context, c Conn, limit int, each func(Row) error) error
	Prune(ctx context.Context, c Conn, errors bool, age time.Duration, limit int) (int64, error)

	// Lock makes a transaction the only one that migrates, until it has ended and Unlock was called
	// on its connection. Its error may be Busy.
	Lock(ctx context.Context, c Conn) error
	Unlock(ctx context.Context, c Conn) error
	// Check refuses connections whose settings would change the values that are written or read.
	Check(ctx context.Context, c Conn) error
	// Isolation is the isolation level of the library's own transactions. At this level they lock
	// only the rows that they name.
	Isolation() sql.IsolationLevel
	// End runs the Commit or Rollback of a transaction and returns soon after ctx has ended. Not
	// every driver does that itself. After an early return the outcome on the server is unknown,
	// and the connection stays in use until the server answers or the connection is lost.
	End(ctx context.Context, end func() error) error
	// Begin prepares a transaction for reads that are followed by writes. It takes the write lock
	// if the database may refuse the lock to a transaction that takes it later.
	Begin(ctx context.Context, c Conn) error
	// StillIn reports whether a transaction that was opened is still open. Some errors end it, and
	// so may a statement of the application. The next statements would then be committed one by
	// one.
	StillIn(ctx context.Context, c Conn) bool
	// ForUpdate is the end of a SELECT that locks its rows. It is empty if a write locks the whole
	// database anyway.
	ForUpdate() string
	// SkipLocked is like ForUpdate, but the SELECT skips rows that another transaction has locked.
	SkipLocked() string
	// Latest is the end of a SELECT that reads the rows as they are committed now, on databases
	// where a transaction reads them as of its first read.
	Latest() string
	// Text is an SQL expression for the text of a column that holds a JSON document.
	Text(column string) string
	// Home is the schema in which c's session finds the tables, or would create them. It is empty
	// if the session has none. Both depend on the session's settings. So the session is asked once,
	// and the answer becomes part of the names.
	Home(ctx context.Context, c Conn) (string, error)
	// CheckTables compares the tables in the catalog with Schema: absent are the tables that do not
	// exist, create are the statements that create missing indexes. Any other difference is
	// ErrShape, which names all of them. Columns and indexes of the application are ignored, except
	// columns to which an insert must give a value.
	CheckTables(ctx context.Context, c Conn) (absent, create []string, err error)
	// Schema is the SQL that creates version Version of the tables.
	Schema() []string
}

// Completer is a Dialect that can do the work of Move from running and of Claim in one statement,
// all of it or nothing. All reports that every task was moved; their ids are then not listed.
// Complete is Move from running with the same results. If history already has an id, both return an
// error and change nothing.
type Completer interface {
	CompleteAndClaim(ctx context.Context, c Conn, rows []Outcome, p ClaimParams, each func(Row) error) (moved []string, all bool, err error)
	Complete(ctx context.Context, c Conn, rows []Outcome) (moved []string, all bool, err error)
}

// Version is the schema's version. Migrate takes older tables to it; Run refuses any other.
const Version = 1

// Columns are the columns of a task's row, in the order in which statements return them.
var Columns = []string{
	"id", "func", "args", "key", "queue", "priority", "run_at", "state", "attempt", "uncounted", "crashes",
	"max_attempts", "timeout_ms", "repeatable", "version", "process_id", "rerun_of", "errors", "meta", "created_at",
	"started_at",
}

// Supported returns the names of the supported databases, as gorm.Dialector.Name returns them.
func Supported() []string { return []string{"mysql", "postgres", "sqlite"} }

// New returns the dialect for the name of a gorm.Dialector. A clock, in tests, replaces the
// database's clock.
func New(name string, names Names, clock func() time.Time) (Dialect, error) {
	switch name {
	case "mysql":
		return newMySQL(names, clock), nil
	case "postgres":
		return newPostgres(names, clock), nil
	case "sqlite":
		return newSQLite(names, clock), nil
	}
	return nil, fmt.Errorf("database %q is not supported; supported are %s", name, strings.Join(Supported(), ", "))
}

// home reads a schema's name, which may be NULL.
func home(rows *sql.Rows, err error) (schema string, _ error) {
	err = each(rows, err, func(r Row) error {
		var name sql.NullString
		err := r.Scan(&name)
		schema = name.String
		return err
	})
	return schema, err
}

// JSONType is the column type of a JSON document, for the models' method GormDBDataType.
func JSONType(name string) string {
	switch name {
	case "postgres":
		return "json"
	case "mysql":
		return "longtext"
	}
	return "text"
}

// base is the part that all dialects share: it renders names into statements.
type base struct {
	names   Names
	clock   func() time.Time
	literal func(time.Time) string // an instant as an SQL literal
	now     string                 // the time of the database's clock

	identifier func(string) string // quotes a name
	pairs      []string
}

func newBase(names Names, clock func() time.Time, quote byte, now string, literal func(time.Time) string) base {
	b := base{names: names, clock: clock, literal: literal, now: now}
	identifier := func(name string) string {
		return string(quote) + strings.ReplaceAll(name, string(quote), string(quote)+string(quote)) + string(quote)
	}
	b.identifier = identifier
	quoted := func(name string) string {
		parts := strings.Split(name, ".")
		for i, p := range parts {
			parts[i] = identifier(p)
		}
		return strings.Join(parts, ".")
	}
	for what, table := range map[string]string{
		"tasks": names.Tasks, "history": names.History, "processes": names.Processes,
		"audit": names.Audit, "version": names.Version,
	} {
		schema, bare := names.place(table)
		if strings.Contains(table, ".") {
			schema = quoted(schema) + "."
		} else if schema != "" {
			schema = identifier(schema) + "." // one name, whatever characters it contains
		}
		b.pairs = append(b.pairs, "{"+what+"}", schema+quoted(bare), "{"+what+".schema}", schema, "{"+what+".bare}", quoted(bare))
		for _, index := range []string{"claim", "key", "process", "parked", "status", "task"} {
			b.pairs = append(b.pairs, "{"+what+"."+index+"}", quoted(names.Index(table, index)))
		}
	}
	columns := slices.Clone(Columns)
	columns[slices.Index(columns, "key")] = quoted("key") // reserved in some databases
	b.pairs = append(b.pairs,
		"{key}", quoted("key"),
		"{before}", quoted("before"),
		"{columns}", strings.Join(columns, ", "),
		"{t.columns}", "t."+strings.Join(columns, ", t."),
		"{v}", fmt.Sprint(Version))
	return b
}

// Now is the time of the database's clock, or the test clock's time as a literal. So statements in
// production have no parameter for it.
func (b *base) Now() string {
	if b.clock == nil {
		return b.now
	}
	return b.literal(b.clock())
}

// render puts names into a statement. It does not put in the time.
func (b *base) render(query string) string {
	if b.clock == nil {
		query = strings.ReplaceAll(query, "{now}", b.now)
	}
	return strings.NewReplacer(b.pairs...).Replace(query)
}

// at puts the test clock's time into a rendered statement. Without a test clock, render has already
// put in an expression for the time.
func (b *base) at(query string) string {
	if b.clock == nil {
		return query
	}
	return strings.ReplaceAll(query, "{now}", b.Now())
}

// script renders a schema template and splits it into statements.
func (b *base) script(template string) []string {
	var out []string
	for s := range strings.SplitSeq(b.at(b.render(template)), ";\n") {
		if s = strings.TrimSpace(s); s != "" {
			out = append(out, strings.TrimSuffix(s, ";"))
		}
	}
	return out
}

// encode does not escape <, > and &, because an escaped character takes six bytes.
func encode(v any) string {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic("outbox: rows of plain values do not encode: " + err.Error())
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// RollBack is for a deferred call. After a panic of the driver, the transaction may wait for its
// statement for ever. So the panic continues without waiting for the rollback.
func RollBack(ctx context.Context, d Dialect, tx *sql.Tx) {
	if v := recover(); v != nil {
		go tx.Rollback()
		panic(v)
	}
	_ = d.End(ctx, tx.Rollback)
}

// Outlive returns a context that ends soon after ctx. It is for a statement whose effect must be
// known, on a database that may not answer.
func Outlive(ctx context.Context) (context.Context, context.CancelFunc) {
	longer, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(grace, cancel) })
	return longer, func() { stop(); cancel() }
}

// Wait sleeps, unless ctx ends.
func Wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// grace is the time for a reply that is under way when a context ends.
const grace = 2 * time.Second

// End has no limit of its own. Some drivers end a COMMIT when the context of its transaction ends,
// and a database in a file always answers.
func (b *base) End(_ context.Context, end func() error) error { return end() }

func each(rows *sql.Rows, err error, f func(Row) error) error {
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := f(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

func texts(rows *sql.Rows, err error) ([]string, error) {
	var out []string
	err = each(rows, err, func(r Row) error {
		var s string
		if err := r.Scan(&s); err != nil {
			return err
		}
		out = append(out, s)
		return nil
	})
	return out, err
}

func partitionStates(rows *sql.Rows, err error) ([]PartitionState, error) {
	var out []PartitionState
	err = each(rows, err, func(r Row) error {
		var l PartitionState
		var next sql.NullInt64
		var priority any
		if err := r.Scan(&l.Queue, &priority, &l.Due, &next); err != nil {
			return err
		}
		n, ok := priority.(int64)
		if !ok {
			// The application has written a value that is not of the column's type, as SQLite
			// allows. The row waits until the application repairs it.
			return nil
		}
		l.Priority = int(n)
		l.Next = -1
		if next.Valid {
			// A start time may be thousands of years away; a Duration holds only some hundred
			// years.
			l.Next = time.Duration(min(max(0, next.Int64), math.MaxInt64/1000)) * time.Microsecond
		}
		out = append(out, l)
		return nil
	})
	return out, err
}

// Micros rounds a duration up to microseconds, so that a task never starts early.
func Micros(d time.Duration) int64 {
	n := int64(d / time.Microsecond)
	if d%time.Microsecond > 0 {
		n++
	}
	return n
}

// nonNil makes an empty list encode as [], not as null.
func nonNil(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}

// ParseTime reads a time that Clock returned. A time without an offset is in UTC.
func ParseTime(text string) (time.Time, error) {
	t, err := time.Parse("2006-01-02 15:04:05.999999-07:00", text)
	if err != nil {
		t, err = time.Parse("2006-01-02 15:04:05.999999", text)
	}
	return t, err
}

// list is a JSON array, or NULL for an empty list.
func list(values []string) any {
	if len(values) == 0 {
		return nil
	}
	return encode(values)
}

func affected(r sql.Result, err error) (int64, error) {
	if err != nil {
		return 0, err
	}
	return r.RowsAffected()
}

// statuses are the statuses that share a retention time: error, or all others.
func statuses(errors bool) []string {
	if errors {
		return []string{"error"}
	}
	return []string{"success", "cancelled"}
}
