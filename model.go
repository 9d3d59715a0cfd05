package outbox

import (
	"database/sql/driver"
	"encoding/json"
	"fmt"
	"time"

	"gorm.io/gorm"
	"gorm.io/gorm/schema"

	"github.com/gorm-outbox/outbox/internal/dialect"
	"github.com/gorm-outbox/outbox/internal/store"
)

// State is where a task stands that has not finished.
type State string

const (
	StatePending State = "pending" // waits for its start time, or is due
	StateRunning State = "running" // claimed by a process
	StateParked  State = "parked"  // due, but no live process has its function
)

// Status is how a task ended.
type Status string

const (
	StatusSuccess   Status = "success"
	StatusError     Status = "error"
	StatusCancelled Status = "cancelled"
)

// Reason says more about how a task or one of its attempts ended.
type Reason string

const (
	ReasonNone        Reason = ""            // success
	ReasonFailed      Reason = "failed"      // the handler returned an error
	ReasonPermanent   Reason = "permanent"   // the handler returned a Permanent error
	ReasonPanic       Reason = "panic"       // the handler panicked
	ReasonGoexit      Reason = "goexit"      // the handler called runtime.Goexit
	ReasonTimeout     Reason = "timeout"     // the time limit was over
	ReasonInterrupted Reason = "interrupted" // the process died, shut down or lost its claim during the run; what the run did is not known
	ReasonBadArgs     Reason = "bad_args"    // the stored arguments do not fit the function
	ReasonTransaction Reason = "transaction" // the handler's transaction was ended or undone behind its back, or the database did not let it begin or end
	ReasonBadResult   Reason = "bad_result"  // success, but the result could not be stored
	ReasonCancelled   Reason = "cancelled"   // by Cancel or CancelKey
	ReasonSnoozed     Reason = "snoozed"     // of a run, for Hooks only: the handler returned Snooze
)

// The models name their columns, because a naming strategy that is not GORM's own would name them
// otherwise, and what AutoMigrate would change in some database if they did not: a precision of
// times, and the unique index of the key, whose name "composite" makes the one that Migrate gives
// it.

// TaskModel is a task that has not finished: a row of outbox_tasks.
//
// Applications read it, with GORM or SQL; they change it through Cancel, Reschedule and their
// neighbours only, which keep Version. Times are instants, in UTC at microseconds (milliseconds on
// SQLite, for times that the database computes).
type TaskModel struct {
	ID          string     `gorm:"column:id;primaryKey;size:36"`                   // UUIDv7
	Func        string     `gorm:"column:func;size:255;not null"`                  // the function's dotted name
	Args        JSON       `gorm:"column:args;not null"`                           // a JSON object
	Key         *string    `gorm:"column:key;size:255;uniqueIndex:,composite:key"` // at most one unfinished task has it
	Queue       string     `gorm:"column:queue;size:64;not null"`
	Priority    int        `gorm:"column:priority;size:16;not null"`           // 1 to 4, lower first
	RunAt       time.Time  `gorm:"column:run_at;size:64;precision:6;not null"` // not before this
	State       State      `gorm:"column:state;size:16;not null"`
	Attempt     int        `gorm:"column:attempt;size:32;not null"`      // claims so far; never lowered
	Uncounted   int        `gorm:"column:uncounted;size:32;not null"`    // those of them that don't count: give-backs, snoozes, repeatable interruptions
	Crashes     int        `gorm:"column:crashes;size:32;not null"`      // repeatable runs that were interrupted
	MaxAttempts int        `gorm:"column:max_attempts;size:32;not null"` // Attempt − Uncounted never exceeds it
	TimeoutMS   int64      `gorm:"column:timeout_ms;not null"`           // limit of one run in milliseconds; 0 means none
	Repeatable  bool       `gorm:"column:repeatable;not null"`           // an interrupted run may be run again; set by the claim
	Version     int64      `gorm:"column:version;not null"`              // raised by every change: the fence
	ProcessID   *string    `gorm:"column:process_id;size:36"`            // the process that runs it
	RerunOf     *string    `gorm:"column:rerun_of;size:36"`              // the finished task that this one repeats
	Errors      Attempts   `gorm:"column:errors"`                        // failed attempts so far, oldest first
	Meta        Meta       `gorm:"column:meta"`                          // small texts that hooks carry from the creator to the run, such as a trace's id
	CreatedAt   time.Time  `gorm:"column:created_at;size:64;precision:6;not null;autoCreateTime:false"`
	StartedAt   *time.Time `gorm:"column:started_at;size:64;precision:6"`
}

// HistoryModel is a task that has ended: a row of outbox_history. It never changes, but for
// RerunID.
type HistoryModel struct {
	ID          string     `gorm:"column:id;primaryKey;size:36"`
	Func        string     `gorm:"column:func;size:255;not null"`
	Args        JSON       `gorm:"column:args;not null"`
	Key         *string    `gorm:"column:key;size:255"`
	Queue       string     `gorm:"column:queue;size:64;not null"`
	Priority    int        `gorm:"column:priority;size:16;not null"`
	RunAt       time.Time  `gorm:"column:run_at;size:64;precision:6;not null"`
	Attempt     int        `gorm:"column:attempt;size:32;not null"`
	Uncounted   int        `gorm:"column:uncounted;size:32;not null"`
	Crashes     int        `gorm:"column:crashes;size:32;not null"`
	MaxAttempts int        `gorm:"column:max_attempts;size:32;not null"`
	TimeoutMS   int64      `gorm:"column:timeout_ms;not null"`
	Version     int64      `gorm:"column:version;not null"` // of the claim that finished it
	ProcessID   *string    `gorm:"column:process_id;size:36"`
	RerunOf     *string    `gorm:"column:rerun_of;size:36"`
	Errors      Attempts   `gorm:"column:errors"`
	Meta        Meta       `gorm:"column:meta"`
	CreatedAt   time.Time  `gorm:"column:created_at;size:64;precision:6;not null;autoCreateTime:false"`
	StartedAt   *time.Time `gorm:"column:started_at;size:64;precision:6"` // of the last attempt; nil if it never ran
	Status      Status     `gorm:"column:status;size:16;not null"`
	Reason      Reason     `gorm:"column:reason;size:32;not null"`
	Result      JSON       `gorm:"column:result"` // what the handler returned besides its error
	Error       *string    `gorm:"column:error"`  // text of the last error, with the stack of a panic
	FinishedAt  time.Time  `gorm:"column:finished_at;size:64;precision:6;not null"`
	RerunID     *string    `gorm:"column:rerun_id;size:36"` // the task that repeats this one
}

// ProcessModel is a live dispatcher: a row of outbox_processes. Its id is new with every start.
type ProcessModel struct {
	ID        string    `gorm:"column:id;primaryKey;size:36"`
	Host      string    `gorm:"column:host;size:255;not null"`
	PID       int64     `gorm:"column:pid;not null"`
	Functions JSON      `gorm:"column:functions;not null"` // array of the functions that it can run
	Queues    JSON      `gorm:"column:queues"`             // array of the queues that it serves; NULL means all
	Slots     int       `gorm:"column:slots;size:32;not null"`
	StartedAt time.Time `gorm:"column:started_at;size:64;precision:6;not null"`
	BeatAt    time.Time `gorm:"column:beat_at;size:64;precision:6;not null"` // of the last heartbeat, by the database's clock
	Beats     int64     `gorm:"column:beats;not null"`                       // heartbeats so far; a process whose count stands still is dead
}

// AuditModel is one change that an administrator made to one task: a row of outbox_audit. It is
// written in the change's transaction, by package admin, and never changes; nothing prunes it. Ids
// are UUIDv7, so their order is that of the rows.
type AuditModel struct {
	ID     string    `gorm:"column:id;primaryKey;size:36"`
	At     time.Time `gorm:"column:at;size:64;precision:6;not null"` // by the database's clock
	Actor  string    `gorm:"column:actor;size:255;not null"`         // as the application's Authorize named them
	Action string    `gorm:"column:action;size:32;not null"`         // rerun, run_now, cancel, reschedule or discard
	TaskID string    `gorm:"column:task_id;size:36;not null"`        // as it was when the change was made
	Func   string    `gorm:"column:func;size:255;not null"`
	Reason string    `gorm:"column:reason;not null"` // what the administrator gave; may be empty
	Before JSON      `gorm:"column:before;not null"` // object: the task's state, version and what the change replaced
	After  JSON      `gorm:"column:after;not null"`  // object: what it became, such as the new task's id
}

// TableName follows the naming strategy: outbox_tasks, with the application's prefix and schema.
func (TaskModel) TableName(namer schema.Namer) string { return namer.TableName("OutboxTask") }

// TableName follows the naming strategy: outbox_history, which has no plural.
func (HistoryModel) TableName(namer schema.Namer) string {
	return namer.JoinTableName("outbox_history")
}

// TableName follows the naming strategy: outbox_processes.
func (ProcessModel) TableName(namer schema.Namer) string { return namer.TableName("OutboxProcess") }

// TableName follows the naming strategy: outbox_audit, which has no plural.
func (AuditModel) TableName(namer schema.Namer) string {
	return namer.JoinTableName("outbox_audit")
}

func names(namer schema.Namer) dialect.Names {
	return dialect.Names{
		Tasks:     TaskModel{}.TableName(namer),
		History:   HistoryModel{}.TableName(namer),
		Processes: ProcessModel{}.TableName(namer),
		Audit:     AuditModel{}.TableName(namer),
		Version:   namer.JoinTableName("outbox_schema"),
		Index:     namer.IndexName,
	}
}

// Attempt is one attempt that did not succeed.
type Attempt struct {
	Attempt int       `json:"attempt"` // counted from 1
	At      time.Time `json:"at"`      // when it started
	Reason  Reason    `json:"reason"`
	Error   string    `json:"error,omitempty"`
}

// Attempts is a column of attempts: a JSON array, NULL when empty.
type Attempts []Attempt

// Meta is a column of small texts: a JSON object, NULL when empty.
type Meta map[string]string

// JSON is a column that holds one JSON document, with every digit as it was given; nil is NULL.
type JSON json.RawMessage

// String is the document as text; empty when there is none.
func (j JSON) String() string { return string(j) }

func (j JSON) MarshalJSON() ([]byte, error) { return json.RawMessage(j).MarshalJSON() }

func (j *JSON) UnmarshalJSON(b []byte) error {
	*j = append((*j)[:0], b...)
	return nil
}

func (j JSON) Value() (driver.Value, error) {
	if j == nil {
		return nil, nil
	}
	return string(j), nil
}

func (j *JSON) Scan(src any) error {
	b, err := columnBytes(src)
	*j = b
	return err
}

func (a Attempts) Value() (driver.Value, error) {
	if len(a) == 0 {
		return nil, nil
	}
	b, err := json.Marshal([]Attempt(a))
	return string(b), err
}

func (a *Attempts) Scan(src any) error { return scanJSON(src, (*[]Attempt)(a)) }

func (a *Attempts) read(column *string) {
	if column != nil {
		_ = a.Scan(*column)
	}
}

func (m Meta) Value() (driver.Value, error) {
	if len(m) == 0 {
		return nil, nil
	}
	b, err := json.Marshal(map[string]string(m))
	return string(b), err
}

func (m *Meta) Scan(src any) error { return scanJSON(src, (*map[string]string)(m)) }

func (m *Meta) read(column *string) {
	if column != nil {
		_ = m.Scan(*column)
	}
}

// GormDBDataType makes the columns json on PostgreSQL and text elsewhere: text that is stored and
// read as it was given, while the binary and numeric types of some databases lose digits.
func (JSON) GormDBDataType(db *gorm.DB, _ *schema.Field) string     { return jsonType(db) }
func (Attempts) GormDBDataType(db *gorm.DB, _ *schema.Field) string { return jsonType(db) }
func (Meta) GormDBDataType(db *gorm.DB, _ *schema.Field) string     { return jsonType(db) }

// GormDataType keeps GORM from taking a slice or a map for a relation.
func (Attempts) GormDataType() string { return "json" }
func (Meta) GormDataType() string     { return "json" }

func jsonType(db *gorm.DB) string { return dialect.JSONType(db.Dialector.Name()) }

func columnBytes(src any) ([]byte, error) {
	switch v := src.(type) {
	case nil:
		return nil, nil
	case string:
		return []byte(v), nil
	case []byte:
		return append([]byte(nil), v...), nil
	}
	return nil, fmt.Errorf("outbox: scan: a JSON column holds %T", src)
}

// scanJSON reads a column that only this library writes. What another program made of it must not
// stop the dispatcher, so a document of another shape reads as empty; a finish that does not touch
// the column leaves it as it is.
func scanJSON[T any](src any, dst *T) error {
	var zero T
	*dst = zero
	b, err := columnBytes(src)
	if err != nil || len(b) == 0 {
		return err
	}
	if json.Unmarshal(b, dst) != nil {
		*dst = zero
	}
	return nil
}

// taskModel is the model of a row.
func taskModel(t *store.Task) *TaskModel {
	m := &TaskModel{
		ID: t.ID, Func: t.Func, Args: JSON(t.Args), Key: t.Key, Queue: t.Queue, Priority: t.Priority, RunAt: t.RunAt, State: State(t.State),
		Attempt: t.Attempt, Uncounted: t.Uncounted, Crashes: t.Crashes, MaxAttempts: t.MaxAttempts, TimeoutMS: t.TimeoutMS,
		Repeatable: t.Repeatable, Version: t.Version, ProcessID: t.ProcessID, RerunOf: t.RerunOf, CreatedAt: t.CreatedAt, StartedAt: t.StartedAt,
	}
	if t.Args == "" {
		m.Args = nil // of a row that cannot be read
	}
	m.Errors.read(t.Errors)
	m.Meta.read(t.Meta)
	return m
}

func historyModel(h *store.History) *HistoryModel {
	m := &HistoryModel{
		ID: h.ID, Func: h.Func, Args: JSON(h.Args), Key: h.Key, Queue: h.Queue, Priority: h.Priority, RunAt: h.RunAt,
		Attempt: h.Attempt, Uncounted: h.Uncounted, Crashes: h.Crashes, MaxAttempts: h.MaxAttempts, TimeoutMS: h.TimeoutMS,
		Version: h.Version, ProcessID: h.ProcessID, RerunOf: h.RerunOf, CreatedAt: h.CreatedAt, StartedAt: h.StartedAt,
		Status: Status(h.Status), Reason: Reason(h.Reason), Error: h.Error, FinishedAt: h.FinishedAt, RerunID: h.RerunID,
	}
	m.Errors.read(h.Errors)
	m.Meta.read(h.Meta)
	if h.Result != nil {
		m.Result = JSON(*h.Result)
	}
	return m
}
