// Package oracle checks whether the library kept its promises. It reads only the tables, after a
// test has subjected the library to faults.
//
// Handlers leave two kinds of trace. An [Effect] is written inside the handler's transaction, a
// [Run] outside of it. Neither has a unique key, which would hide a second one. The program that
// creates tasks keeps a list of [Expect]. [Oracle.Check] reads all of these, the tasks and the
// history, and reports every violation of an [Invariant] with the task's whole story.
//
//	o, err := oracle.New(db, nil)
//	err = o.Migrate(ctx)
//
//	plugin.Handle("pay", func(ctx context.Context, tx *gorm.DB) error {
//		return errors.Join(o.Ran(ctx), o.Did(ctx, tx)) // before what may go wrong
//	})
//	task, err := outbox.Create(db, "pay", nil)
//	created = append(created, oracle.Created(task, oracle.Transactional, oracle.Committed))
//	…
//	violations, err := o.Check(ctx, oracle.Question{Created: created, All: true, Rest: true})
package oracle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"gorm.io/gorm"
	"gorm.io/gorm/logger"
	"gorm.io/gorm/schema"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dialect"
)

// Invariant is a rule that must hold.
type Invariant string

const (
	Loss    Invariant = "L" // every committed Create ends in exactly one history row
	Phantom Invariant = "P" // nothing of a rolled-back Create is stored or runs
	Once    Invariant = "E" // one effect of a transactional handler if and only if history says success
	Number  Invariant = "N" // an ordinary handler runs at most MaxAttempts times; no attempt runs twice
	Fence   Invariant = "F" // only the current claim changes a task; a finished task is immutable
	Time    Invariant = "T" // no task starts early, by the database's clock
	Health  Invariant = "H" // some time after the faults, everything is drained
)

// Kind says which promises hold for a handler.
type Kind string

const (
	Ordinary      Kind = "ordinary"
	Idempotent    Kind = "idempotent"    // an interrupted run may be run again without counting
	Transactional Kind = "transactional" // its handler writes an Effect
)

// Fate is the fate of the transaction that created a task.
type Fate string

const (
	Committed  Fate = "committed"
	RolledBack Fate = "rolled back"
	Unknown    Fate = "unknown" // its COMMIT got no reply: all of the task must exist, or nothing
)

// Expect describes a task that a test has created or has tried to create.
type Expect struct {
	Task        string
	Kind        Kind
	Fate        Fate
	MaxAttempts int       // zero means any number
	Snoozes     int       // runs that may end in Snooze, and so do not count
	NotBefore   time.Time // zero when a Reschedule may have moved the start to an earlier time
	Note        string    // for the story
}

// Created returns the Expect of a task that Create has returned.
func Created(task *outbox.TaskModel, kind Kind, fate Fate) Expect {
	return Expect{Task: task.ID, Kind: kind, Fate: fate, MaxAttempts: task.MaxAttempts, NotBefore: task.RunAt}
}

// Effect is a row that a transactional handler wrote inside its transaction.
type Effect struct {
	Seq     int64     `gorm:"column:seq;primaryKey;autoIncrement"`
	Task    string    `gorm:"column:task;size:36;index"`
	Attempt int       `gorm:"column:attempt"`
	Version int64     `gorm:"column:version"` // of the claim
	PID     int       `gorm:"column:pid"`
	At      time.Time `gorm:"column:at"` // by the database's clock
}

// Run is a call of a handler, written outside of the handler's transaction.
type Run struct {
	Seq     int64     `gorm:"column:seq;primaryKey;autoIncrement"`
	Task    string    `gorm:"column:task;size:36;index"`
	Attempt int       `gorm:"column:attempt"`
	Version int64     `gorm:"column:version"`
	PID     int       `gorm:"column:pid"`
	Due     time.Time `gorm:"column:due"` // the start time of the claimed row
	At      time.Time `gorm:"column:at"`
}

// TableName gives the table a name that the application does not use.
func (Effect) TableName(namer schema.Namer) string { return namer.TableName("OutboxOracleEffect") }

// TableName gives the table a name that the application does not use.
func (Run) TableName(namer schema.Namer) string { return namer.TableName("OutboxOracleRun") }

// Oracle checks one database. It remembers the history rows that it has seen, to find changes. Its
// methods are safe for concurrent use.
type Oracle struct {
	db, runs *gorm.DB
	now      string // the database's clock in SQL
	serial   bool

	mu   sync.Mutex
	seen map[string]mark // history rows by task
}

// New returns an oracle. If runs is not nil, runs are written to this second database: the run of a
// transactional handler needs that if only one transaction at a time can write. The second database
// must be of the same kind, on a machine with the same clock.
func New(db, runs *gorm.DB) (*Oracle, error) {
	d, err := dialect.New(db.Dialector.Name(), dialect.Names{Index: func(string, string) string { return "" }}, nil)
	if err != nil {
		return nil, fmt.Errorf("oracle: %w", err)
	}
	fresh := func(db *gorm.DB) *gorm.DB {
		return db.Session(&gorm.Session{NewDB: true, Logger: logger.Discard})
	}
	if runs == nil {
		runs = db
	}
	return &Oracle{db: fresh(db), runs: fresh(runs), now: d.Now(), serial: d.Serial(), seen: map[string]mark{}}, nil
}

// Migrate creates the tables of effects and runs.
func (o *Oracle) Migrate(ctx context.Context) error {
	err := errors.Join(o.db.WithContext(ctx).AutoMigrate(&Effect{}), o.runs.WithContext(ctx).AutoMigrate(&Run{}))
	if err != nil {
		return fmt.Errorf("oracle: migrate: %w", err)
	}
	return nil
}

// Ran records a call of the handler of ctx. The handler must call it first, and only once. A
// handler whose run cannot be recorded must return the error.
func (o *Oracle) Ran(ctx context.Context) error {
	task, ok := outbox.TaskFrom(ctx)
	if !ok {
		return errors.New("oracle: ran: not a handler's context")
	}
	values := o.trace(task)
	values["due"] = task.RunAt
	// A call whose context has already ended is a call, too.
	return o.runs.WithContext(context.WithoutCancel(ctx)).Model(&Run{}).Create(values).Error
}

// Did records the effect of the handler of ctx, in its transaction.
func (o *Oracle) Did(ctx context.Context, tx *gorm.DB) error {
	task, ok := outbox.TaskFrom(ctx)
	if !ok {
		return errors.New("oracle: did: not a handler's context")
	}
	return tx.Model(&Effect{}).Create(o.trace(task)).Error
}

func (o *Oracle) trace(task *outbox.TaskModel) map[string]any {
	return map[string]any{
		"task": task.ID, "attempt": task.Attempt, "version": task.Version, "pid": os.Getpid(), "at": gorm.Expr(o.now),
	}
}

// Forget deletes everything known about tasks, including their effects and runs, so that a long
// test does not need more and more memory. A run that is written later looks like a phantom.
func (o *Oracle) Forget(ctx context.Context, tasks []string) error {
	o.mu.Lock()
	for _, id := range tasks {
		delete(o.seen, id)
	}
	o.mu.Unlock()
	return chunks(tasks, func(ids []string) error {
		return errors.Join(
			o.db.WithContext(ctx).Where("task IN ?", ids).Delete(&Effect{}).Error,
			o.runs.WithContext(ctx).Where("task IN ?", ids).Delete(&Run{}).Error)
	})
}
