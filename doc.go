// Package outbox is a GORM plugin for one-shot background tasks that commit with the application's
// data: a transactional outbox that runs Go functions.
//
// A task is a row: the name of a function, its named arguments as JSON, and a start time. Create
// inserts it through the transaction that the caller holds. Run dispatches: it finds due rows and
// calls the handler that is registered for the function. A task that has ended leaves the task
// table; its outcome is one row of history. A task that fails is not retried unless it was created
// with MaxAttempts: it ends as error, can be looked up in history, and can be run again with Rerun.
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
//     or not at all. When such a run is interrupted, nothing of it stays, so it runs again without
//     counting; the third interruption ends the task as error. A handler registered as Idempotent
//     is treated the same.
//  6. Only the current claim may write. A process that has lost its claim can change neither the
//     task nor its history; its late outcome is refused and reported.
//  7. A bad row harms only itself. Undecodable arguments, a panic, runtime.Goexit, a text that the
//     database refuses: each gives one row of history, and the other tasks go on.
//  8. A rolling deploy is safe. A process claims only functions that it has registered; an Alias
//     serves a renamed one. Due tasks that no live process can run are parked, and return when a
//     process that has their function starts.
//
// Two limits: an ordinary handler, without a *gorm.DB, may have done its work although its task
// ends as interrupted; and the promises do not cover what a handler does outside the database.
//
// # Words
//
//   - A task is a row of the task table that has not ended. Its function is a dotted name, such as
//     "orders.cancel"; its handler is the Go func that a process has registered for that name.
//   - An attempt, or run, begins with a claim and ends with an outcome. As a rule it calls the
//     handler once.
//   - The start time is the earliest time of the next run, column run_at. The task is due when it
//     has passed.
//   - A claim makes a due task running, with a process as its owner, and raises its version.
//   - The fence is the check of version and owner in each statement that ends a run: it refuses
//     the outcome of a lost claim.
//   - A slot is room for one run in a process; Options.Concurrency is their number. A run holds its
//     slot until its outcome is durable and its handler has returned.
//   - A partition is one queue at one priority. Within it tasks start in the order of their start
//     times.
//   - The lease of a process is how long it may act after its last heartbeat: two thirds of
//     Options.HeartbeatLimit.
//   - An orphan is a running task whose owner is dead. Another process rescues it: it runs again,
//     or ends as interrupted.
//   - A parked task is due, but no live process has its function.
//   - History has one row for each ended task, with its outcome: the status (success, error or
//     cancelled), the reason, the result and the error.
//
// # The route of a task
//
// Create checks the arguments and inserts a pending row with its start time. The row becomes
// visible when the caller commits. A wake-up then hints that something is due; the scan finds what
// a lost hint leaves. The dispatcher claims due tasks for the slots that are free. The run decodes
// the arguments, calls the handler, recovers from panics, and applies the time limit. Then the task
// moves to history, or back to pending for another attempt, if its version and its owner are still
// those of the claim. A process that dies stops beating its row in the process table; others notice
// and rescue its tasks.
//
// # Which handle
//
// Pass the transaction's *gorm.DB to Create and its neighbours, not the outer one. Through the
// outer one a task is committed at once, whatever becomes of the transaction; with a pool of one
// connection the call waits for ever. Conditions, models and selections on the handle make no
// difference.
//
// A handler that takes a *gorm.DB must use that one for what is to commit with its task. It may not
// end the transaction, nor use it after it has returned.
package outbox
