// Package outbox is a GORM plugin for one-shot background tasks that commit with the application's
// data: a transactional outbox that runs Go functions.
//
// A task is a row: a function's dotted path, its named arguments as JSON, and a start time. Create
// inserts it through whatever transaction the caller holds. A dispatcher, Run, finds due rows and
// calls the handler that is registered under the path. A task that has run leaves the task table;
// its outcome is one row of history. A task that fails is not retried unless it was created with
// MaxAttempts: it ends as error, is looked up in history, and can be run again with Rerun.
//
// # Promises
//
//  1. Atomic creation. A task exists if and only if the caller's transaction commits; a rollback,
//     also to a savepoint, drops it. Nothing runs before that commit.
//  2. Nothing is lost. Every committed task ends in exactly one row of history, whatever process
//     dies, once its handler returns, times out or its process dies.
//  3. Never early, by the database's clock; and within one scan (Options.Scan, by default a
//     second) of its start time while a slot is free.
//  4. At most MaxAttempts runs, one by default. A run whose process died counts, with an unknown
//     outcome: with attempts left it is listed in Errors as interrupted and tried again after
//     Options.Backoff; with none left the task ends as error, reason interrupted.
//  5. Exactly once, for database work. A handler that takes a *gorm.DB runs inside the transaction
//     that finishes its task: its writes, the task's removal and the history row commit together
//     or not at all. Such a run, when interrupted, left nothing behind, so it runs again without
//     counting; the third interruption ends the task as error. A handler registered as Idempotent
//     is treated the same.
//  6. Only the current claim may write. A process that has lost its claim can change neither the
//     task nor its history; its late outcome is refused and reported.
//  7. A bad row harms only itself. Undecodable arguments, a panic, runtime.Goexit, a text that the
//     database refuses: one row of history, and the rest go on.
//  8. A rolling deploy is safe. A process claims only functions that it has registered; an Alias
//     serves a renamed one; due tasks that no live process can run are parked, and return when one
//     that can starts.
//
// What they do not say: an ordinary handler, without a *gorm.DB, may have done its work although
// its task ends as interrupted; and whatever a handler does outside the database is outside of
// these promises.
//
// # The route of a task
//
// Create checks the arguments and inserts a row, pending, with its start time. It becomes visible
// when the caller commits; a wake-up is a hint, and the scan is the guarantee. The dispatcher
// claims due rows for exactly the slots that are free: running, with this process as its owner and
// a higher version. The run decodes the arguments, calls the handler, recovers whatever comes, and
// applies the time limit. The finish moves the row to history, or back to pending for another
// attempt, if its version is still that of the claim. A process that dies stops beating its row in
// the process table; others notice and take its tasks over.
//
// # Which handle
//
// Pass the transaction's *gorm.DB to Create and its neighbours, not the outer one: through that, a
// task is committed at once, whatever becomes of the transaction, and with a pool of one connection
// it waits for ever. Conditions, models and selections on the handle make no difference.
//
// A handler that takes a *gorm.DB must use that one for what is to commit with its task. It may not
// end the transaction, nor use it after it has returned.
package outbox
