package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dialect"
	"github.com/gorm-outbox/outbox/internal/store"
)

// changes are the actions on a task, as URLs name them.
var changes = []Action{Rerun, RunNow, Reschedule, Cancel, Discard}

const maxReason = 1000 // characters

// change is a change of one task.
type change struct {
	action  Action
	id      string
	version int64 // the version that the task must still have
	at      time.Time
	args    []byte // nil means the task's own arguments
	reason  string
}

func checkReason(s string) error {
	if utf8.RuneCountInString(s) > maxReason || !utf8.ValidString(s) || strings.ContainsRune(s, 0) {
		return fail(http.StatusBadRequest, "A reason is a text of at most %s characters.", num(maxReason))
	}
	return nil
}

// apply changes one task and writes the audit, in one transaction. For a re-run it returns the new
// task's id.
func (s *site) apply(ctx context.Context, actor Actor, c change) (id string, err error) {
	err = s.inTx(ctx, func(tx *gorm.DB) (err error) {
		id, err = s.applyIn(ctx, tx, actor, c)
		return err
	})
	if err == nil {
		s.forget()
	}
	return id, err
}

// inTx runs f in a transaction that reads before it writes.
func (s *site) inTx(ctx context.Context, f func(*gorm.DB) error) error {
	tx := s.conn(ctx).Begin()
	if tx.Error != nil {
		return tx.Error
	}
	ends := tx.Statement.ConnPool.(gorm.TxCommitter)
	defer func() { _ = s.d.End(ctx, ends.Rollback) }() // has no effect after the commit
	if err := s.d.Begin(ctx, tx.Statement.ConnPool); err != nil {
		return err
	}
	if err := f(tx); err != nil {
		return err
	}
	return s.d.End(ctx, ends.Commit)
}

// applyIn changes a task in a transaction, which stays usable if the task does not allow the
// change.
func (s *site) applyIn(ctx context.Context, tx *gorm.DB, actor Actor, c change) (string, error) {
	task, past, err := outbox.Lookup(tx, c.id)
	if err != nil {
		return "", err
	}
	if err := s.allows(ctx, tx, task, past, c); err != nil {
		return "", err
	}
	before := map[string]any{}
	path := ""
	if task != nil {
		path = task.Func
		before["state"], before["version"], before["run_at"] = task.State, task.Version, task.RunAt.UTC()
	} else {
		path = past.Func
		before["state"], before["version"], before["reason"] = past.Status, past.Version, past.Reason
	}
	after := map[string]any{}
	created := ""
	switch c.action {
	case Rerun:
		var opts []outbox.RerunOption
		if c.args != nil {
			opts = append(opts, outbox.WithArgs(outbox.JSON(c.args)))
			after["args"] = "edited"
		}
		again, err := outbox.Rerun(tx, c.id, opts...)
		if err != nil {
			return "", err
		}
		created = again.ID
		after["task"] = again.ID
	case RunNow:
		past := time.Unix(0, 0) // means now, by the database's clock
		if err := outbox.Reschedule(tx, c.id, past, outbox.IfVersion(c.version)); err != nil {
			return "", err
		}
		after["state"], after["version"], after["run_at"] = outbox.StatePending, c.version+1, "now"
	case Reschedule:
		if err := outbox.Reschedule(tx, c.id, c.at, outbox.IfVersion(c.version)); err != nil {
			return "", err
		}
		after["state"], after["version"], after["run_at"] = outbox.StatePending, c.version+1, c.at.UTC()
	case Cancel:
		if err := outbox.Cancel(tx, c.id, outbox.IfVersion(c.version)); err != nil {
			return "", err
		}
		after["state"] = outbox.StatusCancelled
	case Discard:
		there, err := s.inside().Store.Discard(ctx, tx.Statement.ConnPool, c.id)
		if err != nil {
			return "", err
		}
		if !there {
			return "", outbox.ErrConflict
		}
		before["error"], before["finished_at"] = firstLine(past.Error), past.FinishedAt.UTC()
		after["state"] = "discarded"
	default:
		return "", fmt.Errorf("no such change: %q", c.action)
	}
	return created, s.record(ctx, tx, outbox.AuditModel{Actor: auditName(actor), Action: string(c.action), TaskID: c.id, Func: path,
		Reason: c.reason, Before: encode(before), After: encode(after)})
}

// allows returns nil if a task is still as it was shown and allows the change. Otherwise the error
// has the task's present state.
func (s *site) allows(ctx context.Context, tx *gorm.DB, task *outbox.TaskModel, past *outbox.HistoryModel, c change) error {
	var is now
	if task != nil {
		is = now{string(task.State), task.Version}
	} else {
		is = now{stateOf(past.Status, past.RerunID != nil), past.Version}
	}
	ofEnded := c.action == Rerun || c.action == Discard
	text, cause := "", error(nil)
	switch {
	case is.Version != c.version:
		text = "The task has changed since it was shown: it is {state} now, version " + strconv.FormatInt(is.Version, 10) + "."
	case is.State == running && !ofEnded:
		text, cause = "The task is running, so it can be neither cancelled nor changed.", outbox.ErrRunning
	case task != nil && ofEnded:
		text = "The task is {state}: it has not ended, so it can be neither re-run nor discarded."
	case past != nil && !ofEnded:
		text = "The task has ended: it is {state}."
	case past != nil && past.RerunID != nil:
		text = "The task has been re-run already, as " + *past.RerunID + "."
	case c.action == Discard && is.State != failed:
		text = "Only a failed task can be discarded; this one is {state}."
	default:
		return nil
	}
	if is.State == pending { // or scheduled, depending on the clock
		clock, err := s.d.Clock(ctx, tx.Statement.ConnPool)
		if err != nil {
			return err
		}
		at, err := dialect.ParseTime(clock)
		if err != nil {
			return err
		}
		is.State = row{State: task.State, RunAt: task.RunAt}.state(at)
	}
	p := fail(http.StatusConflict, "%s", strings.ReplaceAll(text, "{state}", is.State))
	p.Now, p.cause = &is, cause
	return p
}

func encode(v any) outbox.JSON {
	b, err := json.Marshal(v)
	if err != nil {
		panic("admin: plain values do not encode: " + err.Error())
	}
	return b
}

// record writes the audit. Like the change itself, it bypasses GORM's callbacks, so that both are
// written or neither.
func (s *site) record(ctx context.Context, tx *gorm.DB, m outbox.AuditModel) error {
	id, err := uuid.NewV7()
	if err != nil {
		return err
	}
	return s.inside().Store.InsertAudit(ctx, tx.Statement.ConnPool, store.Audit{ID: id.String(), Actor: m.Actor, Action: m.Action,
		TaskID: m.TaskID, Func: m.Func, Reason: m.Reason, Before: m.Before.String(), After: m.After.String()})
}

// auditName is an actor's name in the audit.
func auditName(a Actor) string { return shorten(clean(a.Name), 200) }

// clean makes a name storable.
func clean(s string) string {
	var b []rune
	for _, r := range s { // invalid UTF-8 comes as utf8.RuneError
		if r != 0 {
			b = append(b, r)
		}
	}
	return string(b)
}
