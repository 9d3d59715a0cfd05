// Package dialect holds everything that differs between databases: the schema, the statements that
// change state, the database's clock and the meaning of its errors. Each database has files of its
// name and one SQL template; nothing outside this package names one.
//
// Every statement has a constant text, whatever the number of rows: a group of rows travels as one
// JSON array in one parameter, so that drivers prepare it once. Only PostgreSQL's claim tells its
// size, rounded up to a power of two. Inside that array, JSON documents travel as strings, because
// SQLite's json_each would turn the integers of a nested document into floats.
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

// Conn is what statements run on: a pool, a connection or a transaction.
type Conn interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// Row is one row of a result: *sql.Rows, or what a dialect has read in another way.
type Row interface {
	Scan(dest ...any) error
}

// Names are the tables of one plugin, as GORM's naming strategy gives them: unquoted, perhaps
// qualified by a schema.
type Names struct {
	Tasks, History, Processes, Audit, Version string

	// Schema is where the tables are that are not qualified. Empty leaves it to each session.
	Schema string

	// Index names an index of a table.
	Index func(table, what string) string
}

// place splits a table's name into its schema, empty where that is the session's, and the name in
// it.
func (n Names) place(table string) (schema, bare string) {
	if i := strings.LastIndexByte(table, '.'); i >= 0 {
		return table[:i], table[i+1:]
	}
	return n.Schema, table
}

// Partition is one queue at one priority: what the claim's index holds in the order of run_at.
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

// PartitionState is what a probe found in a partition.
type PartitionState struct {
	Partition
	Due  bool          // something is due
	Next time.Duration // until the partition's next task that is not due yet; negative when there is none
}

// NewRow is a task to insert. What most tasks leave empty is left out of the parameter.
type NewRow struct {
	ID          string  `json:"id"`
	Func        string  `json:"func"`
	Args        string  `json:"args"`
	Key         *string `json:"key,omitempty"`
	Queue       string  `json:"queue"`
	Priority    int     `json:"priority"`
	At          *string `json:"at,omitempty"`    // start time as Time formats it; nil means DelayUS from now
	Past        bool    `json:"past,omitempty"`  // At is not in the future of the caller's clock: never later than now
	DelayUS     int64   `json:"delay,omitempty"` // microseconds
	MaxAttempts int     `json:"max_attempts"`
	TimeoutMS   int64   `json:"timeout_ms,omitempty"`
	RerunOf     *string `json:"rerun_of,omitempty"`
	Meta        *string `json:"meta,omitempty"`
}

// Outcome ends a task: its row moves to history. What most outcomes leave empty is left out of the
// parameter.
type Outcome struct {
	ID      string  `json:"id"`
	Version *int64  `json:"version"`           // the fence; nil means any
	Process string  `json:"process,omitempty"` // the fence of a running task, too: after a failover another may have claimed the same version
	Status  string  `json:"status"`
	Reason  string  `json:"reason,omitempty"`
	Result  *string `json:"result,omitempty"`
	Error   *string `json:"error,omitempty"`
	Errors  *string `json:"errors,omitempty"`
	Crashes int     `json:"crashes,omitempty"` // added to the row's
}

// Requeued puts a running task back to pending.
type Requeued struct {
	ID        string  `json:"id"`
	Version   int64   `json:"version"`           // the fence
	Process   string  `json:"process,omitempty"` // and its other half
	DelayUS   int64   `json:"delay"`             // microseconds from now
	Uncounted int     `json:"uncounted"`
	Crashes   int     `json:"crashes"`
	Errors    *string `json:"errors"`
}

// ClaimParams says who claims what.
type ClaimParams struct {
	Process    string
	Partitions []Partition // in the order of preference
	Funcs      []string    // only tasks of these functions
	Repeatable []string    // those of Funcs whose interrupted runs may be run again
	Limit      int         // at most so many rows
	Share      int         // limit of rows from each partition; 0 means Limit
	Until      string      // only rows due at this time, as Time formats it; empty means now

	// Cursors are where to begin in a partition. A database in which a scan has to walk over the
	// entries of rows that are gone, as long as some transaction may see them, takes only rows
	// behind the mark; another may ignore it.
	Cursors map[Partition]Cursor
}

// share is how many rows of a partition may be claimed when so many are left.
func (p ClaimParams) share(left int) int {
	if p.Share > 0 {
		return min(p.Share, left)
	}
	return left
}

// partitionCursor is a partition with its mark as a parameter.
type partitionCursor struct {
	Partition
	RunAt *string `json:"run_at"`
	ID    string  `json:"id"`
}

// marked are the partitions with their marks; head is the start time where there is none.
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

// From says in which states a row may be for Move to take it.
type From int

const (
	FromRunning From = iota // a finish
	FromWaiting             // a cancellation: pending or parked
)

// Dialect is one database, with its statements rendered for one plugin's tables.
type Dialect interface {
	Name() string

	// Serial reports that one transaction at a time can write, so transactional handlers run one by
	// one.
	Serial() bool

	// Keep reports that a statement is worth keeping prepared, because drivers prepare it each time
	// that it is executed.
	Keep() bool

	// OneStatement reports that Claim and Move are one statement each, which need no transaction to
	// be all or nothing.
	OneStatement() bool

	// Time formats an instant as a parameter that Instant turns into a value.
	Time(t time.Time) string

	// Now is an SQL expression of the database's clock; it can stand in an index condition.
	Now() string
	// Instant is an SQL expression of the instant that the next parameter holds, formatted by Time.
	Instant() string
	// Rebind turns the question marks of a portable statement into this database's placeholders,
	// and {tasks}, {history}, {processes}, {audit} and {now} into names; {key} and {before} are
	// columns that some database reserves.
	Rebind(query string) string

	Insert(ctx context.Context, c Conn, rows []NewRow, each func(Row) error) error
	Poll(ctx context.Context, c Conn) ([]PartitionState, error)
	Clock(ctx context.Context, c Conn) (string, error)
	Claim(ctx context.Context, c Conn, p ClaimParams, each func(Row) error) error
	// Move takes rows from tasks to history and returns the ids that the fence let through. An id
	// that history has already, as after a restored backup, only leaves the task table.
	Move(ctx context.Context, c Conn, from From, rows []Outcome) ([]string, error)
	Requeue(ctx context.Context, c Conn, rows []Requeued) ([]string, error)
	Park(ctx context.Context, c Conn, partitions []Partition, limit int) ([]string, error)
	Unpark(ctx context.Context, c Conn, funcs, queues []string, limit int) (int64, error)
	Orphans(ctx context.Context, c Conn, limit int, each func(Row) error) error
	Prune(ctx context.Context, c Conn, errors bool, age time.Duration, limit int) (int64, error)

	// Lock makes a transaction the only one that migrates, until it has ended and Unlock was called
	// on its connection. It may fail as Busy.
	Lock(ctx context.Context, c Conn) error
	Unlock(ctx context.Context, c Conn) error
	// Check refuses connections whose settings would change what is written or read.
	Check(ctx context.Context, c Conn) error
	// Isolation is the level of the library's own transactions, under which they lock no more than
	// the rows they name.
	Isolation() sql.IsolationLevel
	// End runs the Commit or Rollback of a transaction, and returns soon after ctx has ended, which
	// not every driver does. What the server did is not known then; the connection stays taken
	// until the server answers or is lost.
	End(ctx context.Context, end func() error) error
	// Begin readies a transaction for reads that are followed by writes: it takes the write lock
	// where a transaction that takes it later may be refused.
	Begin(ctx context.Context, c Conn) error
	// StillIn reports whether an open transaction is still one. Where it can be gone, after some
	// errors or because somebody has ended it with a statement, the next statements would be
	// committed one by one.
	StillIn(ctx context.Context, c Conn) bool
	// ForUpdate ends a SELECT so that it locks the rows; empty where a write locks everything
	// anyway.
	ForUpdate() string
	// SkipLocked is ForUpdate that leaves out the rows that another transaction has locked.
	SkipLocked() string
	// Latest ends a SELECT so that it reads what is committed now, where a transaction sees its
	// first read's time.
	Latest() string
	// Text is the text of a column that holds a JSON document.
	Text(column string) string
	// Home is the schema in which c's session finds the tables, or would create them; empty when it
	// has none. Both depend on what the session has set, so it is asked once and the answer becomes
	// part of the names.
	Home(ctx context.Context, c Conn) (string, error)
	// CheckTables compares the tables with Schema by the catalog: absent are those that are not
	// there, create are statements for indexes that are missing. Anything else that differs is
	// ErrShape, with all of it by name. Columns and indexes of others do not count, but for columns
	// that an insert must fill.
	CheckTables(ctx context.Context, c Conn) (absent, create []string, err error)
	// Schema is the SQL that creates version Version of the tables.
	Schema() []string
}

// Completer is a Dialect that can do in one statement what Move from running and Claim do: all of
// it or nothing. All says that every task was moved; then their ids are not listed. Complete is
// Move from running that tells the same. An id that history has already is an error of both, and
// nothing is done.
type Completer interface {
	CompleteAndClaim(ctx context.Context, c Conn, rows []Outcome, p ClaimParams, each func(Row) error) (moved []string, all bool, err error)
	Complete(ctx context.Context, c Conn, rows []Outcome) (moved []string, all bool, err error)
}

// Version is the schema's version. Migrate takes older tables to it; Run refuses any other.
const Version = 1

// Columns of a task's row, in the order in which statements return them.
var Columns = []string{
	"id", "func", "args", "key", "queue", "priority", "run_at", "state", "attempt", "uncounted", "crashes",
	"max_attempts", "timeout_ms", "repeatable", "version", "process_id", "rerun_of", "errors", "meta", "created_at",
	"started_at",
}

// Names of the supported databases, as gorm.Dialector.Name gives them.
func Supported() []string { return []string{"mysql", "postgres", "sqlite"} }

// New returns the dialect for a gorm.Dialector's name. A clock, for tests, replaces the database's.
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

// home reads a schema's name, NULL when there is none.
func home(rows *sql.Rows, err error) (schema string, _ error) {
	err = each(rows, err, func(r Row) error {
		var name sql.NullString
		err := r.Scan(&name)
		schema = name.String
		return err
	})
	return schema, err
}

// JSONType is the column type of a JSON document, for the models' GormDBDataType.
func JSONType(name string) string {
	switch name {
	case "postgres":
		return "json"
	case "mysql":
		return "longtext"
	}
	return "text"
}

// base is what the dialects share: rendering names into statements.
type base struct {
	names   Names
	clock   func() time.Time
	literal func(time.Time) string // an instant as an SQL literal
	now     string                 // the database's clock

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
			schema = identifier(schema) + "." // one name, whatever is in it
		}
		b.pairs = append(b.pairs, "{"+what+"}", schema+quoted(bare), "{"+what+".schema}", schema, "{"+what+".bare}", quoted(bare))
		for _, index := range []string{"claim", "key", "process", "parked", "status", "task"} {
			b.pairs = append(b.pairs, "{"+what+"."+index+"}", quoted(names.Index(table, index)))
		}
	}
	columns := slices.Clone(Columns)
	columns[slices.Index(columns, "key")] = quoted("key") // which is reserved in some database
	b.pairs = append(b.pairs,
		"{key}", quoted("key"),
		"{before}", quoted("before"),
		"{columns}", strings.Join(columns, ", "),
		"{t.columns}", "t."+strings.Join(columns, ", t."),
		"{v}", fmt.Sprint(Version))
	return b
}

// Now is the database's clock, or the test clock's time as a literal: so production statements have
// no parameter for it.
func (b *base) Now() string {
	if b.clock == nil {
		return b.now
	}
	return b.literal(b.clock())
}

// render puts names into a statement, but not the time.
func (b *base) render(query string) string {
	if b.clock == nil {
		query = strings.ReplaceAll(query, "{now}", b.now)
	}
	return strings.NewReplacer(b.pairs...).Replace(query)
}

// at puts the time into a rendered statement, which only a test clock leaves to do.
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

// encode leaves <, > and & as they are: each would become six bytes.
func encode(v any) string {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic("outbox: rows of plain values do not encode: " + err.Error())
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// RollBack is for a deferred call. A driver that panics may leave a transaction that waits for its
// statement for ever, so the panic goes on without it.
func RollBack(ctx context.Context, d Dialect, tx *sql.Tx) {
	if v := recover(); v != nil {
		go tx.Rollback()
		panic(v)
	}
	_ = d.End(ctx, tx.Rollback)
}

// Outlive is a context that ends soon after ctx, and not with it: for a statement whose effect is
// to be known, on a database that may not answer.
func Outlive(ctx context.Context) (context.Context, context.CancelFunc) {
	longer, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(grace, cancel) })
	return longer, func() { stop(); cancel() }
}

// grace is for a reply that is under way when a context ends.
const grace = 2 * time.Second

// End leaves it to drivers that end a COMMIT with its transaction's context, and to files, which
// are never silent.
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
			return nil // somebody wrote into a row what its type does not hold, as SQLite allows; it waits for a repair
		}
		l.Priority = int(n)
		l.Next = -1
		if next.Valid {
			// A start time may be thousands of years off, a Duration only some hundred.
			l.Next = time.Duration(min(max(0, next.Int64), math.MaxInt64/1000)) * time.Microsecond
		}
		out = append(out, l)
		return nil
	})
	return out, err
}

// Micros rounds a duration up to microseconds: a task is never early.
func Micros(d time.Duration) int64 {
	n := int64(d / time.Microsecond)
	if d%time.Microsecond > 0 {
		n++
	}
	return n
}

// nonNil keeps an empty list from being encoded as null.
func nonNil(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}

// ParseTime reads what Clock returns: without an offset it is in UTC.
func ParseTime(text string) (time.Time, error) {
	t, err := time.Parse("2006-01-02 15:04:05.999999-07:00", text)
	if err != nil {
		t, err = time.Parse("2006-01-02 15:04:05.999999", text)
	}
	return t, err
}

// list is a JSON array, or NULL for no list at all.
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

// statuses are those that share a retention time.
func statuses(errors bool) []string {
	if errors {
		return []string{"error"}
	}
	return []string{"success", "cancelled"}
}
