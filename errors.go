package outbox

import (
	"errors"

	"github.com/gorm-outbox/outbox/internal/dispatch"
	"github.com/gorm-outbox/outbox/internal/store"
	"github.com/gorm-outbox/outbox/internal/text"
)

// Errors that callers branch on. They come wrapped with what was being done and to which path, task
// or key.
var (
	// ErrNotInstalled: the *gorm.DB does not have the plugin; call db.Use(outbox.New(…)) on the DB
	// that it comes from.
	ErrNotInstalled = errors.New("the outbox plugin is not installed on this *gorm.DB")

	// ErrDryRun: the handle is in DryRun mode, in which nothing can be created or changed.
	ErrDryRun = errors.New("the *gorm.DB is in DryRun mode")

	// ErrNoTransaction: the handle is not in a transaction, and Options.RequireTx asks for one.
	ErrNoTransaction = errors.New("the *gorm.DB is not in a transaction, which Options.RequireTx asks for: use the transaction's handle")

	// ErrUnknownFunc: no handler of the function is registered in this process.
	ErrUnknownFunc = errors.New("unknown function")

	// ErrBadArgs: the arguments are not JSON, too large or too deep, or do not fit the function's
	// parameters.
	ErrBadArgs = dispatch.ErrBadArgs

	// ErrBadOption: an option's value is not valid, such as a start time that does not exist.
	ErrBadOption = errors.New("bad option")

	// ErrDuplicateKey: an unfinished task holds the key. errors.As with *DuplicateKeyError gives
	// its id.
	ErrDuplicateKey = errors.New("duplicate key")

	// ErrNotFound: no such task is waiting; it has finished, or its history has been pruned, or it
	// never was.
	ErrNotFound = errors.New("task not found")

	// ErrRunning: the task is running, so that it can be neither cancelled nor changed.
	ErrRunning = errors.New("task is running")

	// ErrConflict: the task is not what the caller thinks: its version has moved on, or it has been
	// re-run already.
	ErrConflict = errors.New("task has changed")

	// ErrClaimLost: another process has rescued the task, so its outcome was refused. It is what
	// context.Cause gives a handler whose process can no longer prove that it is alive.
	ErrClaimLost = dispatch.ErrClaimLost

	// ErrTxClosed: a transactional handler's *gorm.DB was used after the handler had returned.
	ErrTxClosed = dispatch.ErrTxClosed

	// ErrTxGuarded: a transactional handler called Commit or Rollback; return nil or an error
	// instead.
	ErrTxGuarded = dispatch.ErrTxGuarded

	// ErrSchema: the tables are missing or of another version.
	ErrSchema = store.ErrSchema
)

// DuplicateKeyError says which task holds a key. errors.Is(err, ErrDuplicateKey) is true of it.
type DuplicateKeyError struct {
	Key string
	ID  string // of the task that holds it
}

func (e *DuplicateKeyError) Error() string {
	return "key " + text.Quote(e.Key) + " is held by the unfinished task " + e.ID
}

func (e *DuplicateKeyError) Unwrap() error { return ErrDuplicateKey }
