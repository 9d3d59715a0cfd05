package dialect

import (
	"context"
	"database/sql"
	_ "embed"
	"fmt"
	"strconv"
	"strings"
	"time"
)

//go:embed sqlite.sql
var sqliteSchema string

// sqlite is the dialect of SQLite 3.38 and later, with any driver. Times are texts of a fixed width
// in UTC, so they compare as strings. The clock has a precision of milliseconds.
type sqlite struct {
	base
	insert, probe, claim, claimPlainly, refill, refillPlainly, claimFirsts, claimFirstsPlainly, requeue, park, unpark, orphans, prune string

	// The two steps of Move. Statements whose names end in Told return the ids. Statements whose
	// names contain Done are for outcomes that say only that the task has succeeded.
	copyDone, copyRunning, copyWaiting, dropDone, dropRunning, dropWaiting, dropDoneTold, dropRunningTold, dropWaitingTold string
}

const sqliteTime = "2006-01-02 15:04:05.000000-07:00"

func newSQLite(names Names, clock func() time.Time) *sqlite {
	s := &sqlite{base: newBase(names, clock, '"', sqliteNow("'now'"), func(t time.Time) string {
		return "'" + t.UTC().Format(sqliteTime) + "'"
	})}
	s.insert = s.render(`
INSERT INTO {tasks} (id, func, args, key, queue, priority, run_at, state, attempt, uncounted, crashes, max_attempts,
	timeout_ms, repeatable, version, rerun_of, meta, created_at)
SELECT r.value ->> 'id', r.value ->> 'func', r.value ->> 'args', r.value ->> 'key', r.value ->> 'queue',
	r.value ->> 'priority',
	CASE WHEN r.value ->> 'at' IS NULL THEN {now+delay}
	     WHEN r.value ->> 'past' THEN min(r.value ->> 'at', {now}) ELSE r.value ->> 'at' END,
	'pending', 0, 0, 0, r.value ->> 'max_attempts', coalesce(r.value ->> 'timeout_ms', 0), 0, 1, r.value ->> 'rerun_of',
	r.value ->> 'meta', {now}
FROM json_each(?1) r WHERE true
ON CONFLICT (key) WHERE key IS NOT NULL DO NOTHING
RETURNING id, run_at, created_at`)
	// The next partition is found in two steps: for (queue, priority) > (?, ?), the index search
	// uses only the queue and so walks the whole partition.
	s.probe = s.render(`
WITH RECURSIVE part(queue, priority) AS (
	SELECT * FROM (SELECT queue, priority FROM {tasks} WHERE state = 'pending' ORDER BY queue, priority LIMIT 1)
	UNION ALL
	SELECT n.queue, n.priority FROM part l JOIN {tasks} n ON n.rowid = coalesce((
		SELECT t.rowid FROM {tasks} t WHERE t.state = 'pending' AND t.queue = l.queue AND t.priority > l.priority
		ORDER BY t.priority LIMIT 1), (
		SELECT t.rowid FROM {tasks} t WHERE t.state = 'pending' AND t.queue > l.queue
		ORDER BY t.queue, t.priority LIMIT 1))
)
SELECT l.queue, l.priority,
	(SELECT t.run_at FROM {tasks} t
		WHERE t.state = 'pending' AND t.queue = l.queue AND t.priority = l.priority
		ORDER BY t.run_at LIMIT 1) <= {now},
	(SELECT CAST((julianday(t.run_at) - julianday({now})) * 86400000000 AS INTEGER) + 500 FROM {tasks} t
		WHERE t.state = 'pending' AND t.queue = l.queue AND t.priority = l.priority AND t.run_at > {now}
		ORDER BY t.run_at LIMIT 1)
FROM part l`)
	claim := `
UPDATE {tasks} SET state = 'running', attempt = attempt + 1, version = version + 1, process_id = ?1,
	started_at = {now}, repeatable = func IN (SELECT value FROM json_each(?2))
WHERE rowid IN (
	SELECT rowid FROM {tasks}
	WHERE state = 'pending' AND queue = ?3 AND priority = ?4 AND run_at <= coalesce(nullif(?5, ''), {now})
		AND func IN (SELECT value FROM json_each(?6))
	ORDER BY run_at LIMIT ?7)
	AND EXISTS (SELECT 1 FROM {processes} WHERE id = ?1)
RETURNING `
	// Only for a partition with a cursor: a start time that is not a text sorts before any text.
	refill := strings.Replace(claim, "	ORDER BY", "		AND run_at >= ?8\n	ORDER BY", 1)
	s.claim, s.claimPlainly = s.render(claim+"json_array({columns})"), s.render(claim+"{columns}")
	s.refill, s.refillPlainly = s.render(refill+"json_array({columns})"), s.render(refill+"{columns}")

	firsts := strings.Replace(claim, claim[strings.Index(claim, "	SELECT rowid FROM"):strings.Index(claim, "	AND EXISTS")], `
	SELECT first FROM (
		SELECT (SELECT t.rowid FROM {tasks} t
			WHERE t.state = 'pending' AND t.queue = l.value ->> 'queue' AND t.priority = l.value ->> 'priority'
				AND t.run_at <= coalesce(nullif(?4, ''), {now})
				AND (l.value ->> 'run_at' IS NULL OR t.run_at >= l.value ->> 'run_at')
				AND t.func IN (SELECT value FROM json_each(?5))
			ORDER BY t.run_at LIMIT 1) AS first
		FROM json_each(?3) l)
	WHERE first IS NOT NULL LIMIT ?6)
`, 1)
	s.claimFirsts, s.claimFirstsPlainly = s.render(firsts+"json_array({columns})"), s.render(firsts+"{columns}")

	fence := "t.state = 'running' AND t.version = o.value ->> 'version' AND coalesce(t.process_id, '') = coalesce(o.value ->> 'process', '')"
	waiting := "t.state IN ('pending', 'parked') AND (o.value ->> 'version' IS NULL OR t.version = o.value ->> 'version')"
	// CROSS JOIN keeps SQLite from making the table the outer loop.
	copied := `
INSERT INTO {history} (id, func, args, key, queue, priority, run_at, attempt, uncounted, crashes, max_attempts,
	timeout_ms, version, process_id, rerun_of, errors, meta, created_at, started_at, status, reason, result, error,
	finished_at)
SELECT t.id, t.func, t.args, t.key, t.queue, t.priority, t.run_at, t.attempt, t.uncounted,
	t.crashes + coalesce(o.value ->> 'crashes', 0), t.max_attempts, t.timeout_ms, t.version, t.process_id, t.rerun_of,
	coalesce(o.value ->> 'errors', t.errors), t.meta, t.created_at, t.started_at,
	o.value ->> 'status', coalesce(o.value ->> 'reason', ''), o.value ->> 'result', o.value ->> 'error', {now}
FROM json_each(?1) o CROSS JOIN {tasks} t ON t.id = o.value ->> 'id' AND `
	dropped := `
DELETE FROM {tasks} WHERE rowid IN (
	SELECT t.rowid FROM json_each(?1) o CROSS JOIN {tasks} t ON t.id = o.value ->> 'id' AND {fence})`
	once := "\nWHERE true ON CONFLICT (id) DO NOTHING"
	// Each ->> parses the element again. Most groups need no ->>: their parameter is an object that
	// maps ids to versions, for one process.
	done := strings.NewReplacer("coalesce(o.value ->> 'crashes', 0)", "0", "coalesce(o.value ->> 'errors', t.errors)", "t.errors",
		"coalesce(o.value ->> 'reason', '')", "''", "o.value ->> 'status'", "'success'", "o.value ->> 'result'", "NULL",
		"o.value ->> 'error'", "NULL", "o.value ->> 'id'", "o.key", "o.value ->> 'version'", "o.value",
		"coalesce(o.value ->> 'process', '')", "?2").Replace
	s.copyRunning, s.copyWaiting = s.render(copied+fence+once), s.render(copied+waiting+once)
	s.copyDone = s.render(done(copied + fence + once))
	s.dropRunning = s.render(strings.Replace(dropped, "{fence}", fence, 1))
	s.dropWaiting = s.render(strings.Replace(dropped, "{fence}", waiting, 1))
	s.dropDone = s.render(done(strings.Replace(dropped, "{fence}", fence, 1)))
	const told = "\nRETURNING id"
	s.dropDoneTold, s.dropRunningTold, s.dropWaitingTold = s.dropDone+told, s.dropRunning+told, s.dropWaiting+told
	s.requeue = s.render(`
UPDATE {tasks} AS t SET state = 'pending', version = t.version + 1, process_id = NULL, started_at = NULL,
	run_at = {now+delay}, uncounted = t.uncounted + (r.value ->> 'uncounted'),
	crashes = t.crashes + (r.value ->> 'crashes'), errors = coalesce(r.value ->> 'errors', t.errors)
FROM json_each(?1) r
WHERE t.id = r.value ->> 'id' AND t.state = 'running' AND t.version = r.value ->> 'version'
	AND coalesce(t.process_id, '') = coalesce(r.value ->> 'process', '')
RETURNING id`)
	// The functions that the queue's processes serve are read once, not for each task.
	s.park = s.render(`
UPDATE {tasks} SET state = 'parked', version = version + 1
WHERE rowid IN (
	SELECT h.rowid FROM (
		SELECT rowid, func FROM {tasks}
		WHERE state = 'pending' AND queue = ?1 AND priority = ?2 AND run_at <= {now}
		ORDER BY run_at LIMIT ?3) h
	WHERE h.func NOT IN (SELECT f.value FROM {processes} p, json_each(p.functions) f
		WHERE p.queues IS NULL OR ?1 IN (SELECT value FROM json_each(p.queues))))
RETURNING func`)
	s.unpark = s.render(`
UPDATE {tasks} SET state = 'pending', version = version + 1
WHERE rowid IN (
	SELECT rowid FROM {tasks}
	WHERE state = 'parked' AND func IN (SELECT value FROM json_each(?1))
		AND (?2 IS NULL OR queue IN (SELECT value FROM json_each(?2)))
	LIMIT ?3)`)
	s.orphans = s.render(`
SELECT {t.columns} FROM {tasks} t
WHERE t.state = 'running' AND NOT EXISTS (SELECT 1 FROM {processes} p WHERE p.id = t.process_id)
LIMIT ?1`)
	s.prune = s.render(`
DELETE FROM {history} WHERE rowid IN (
	SELECT rowid FROM {history}
	WHERE status = ?1 AND finished_at < {now-age}
	ORDER BY finished_at LIMIT ?3)`)
	return s
}

// sqliteNow is a time of the database's clock in the library's format, changed by modifiers.
func sqliteNow(base string, modifiers ...string) string {
	return "(strftime('%Y-%m-%d %H:%M:%f', " + strings.Join(append([]string{base}, modifiers...), ", ") + ") || '000+00:00')"
}

// A delay is rounded up to milliseconds, so that a task never starts early.
const sqliteDelay = "printf('+%.3f seconds', (coalesce(r.value ->> 'delay', 0) + 999) / 1000 / 1000.0)"

// render also puts in the two times that depend on a parameter: {now+delay} and {now-age}.
func (s *sqlite) render(query string) string {
	if s.clock == nil {
		query = s.moved(query, "'now'")
	}
	return s.base.render(query)
}

func (s *sqlite) at(query string) string {
	if s.clock == nil {
		return query
	}
	return s.base.at(s.moved(query, s.Now()))
}

func (s *sqlite) moved(query, clock string) string {
	return strings.NewReplacer(
		"{now+delay}", sqliteNow(clock, sqliteDelay),
		"{now-age}", sqliteNow(clock, "printf('-%.3f seconds', ?2 / 1000000.0)"),
	).Replace(query)
}

func (s *sqlite) Name() string { return "sqlite" }
func (s *sqlite) Serial() bool { return true }
func (s *sqlite) Keep() bool   { return true }

func (s *sqlite) OneStatement() bool { return false }

func (s *sqlite) Latest() string { return "" }

func (s *sqlite) Text(column string) string { return "CAST(" + column + " AS text)" }

func (s *sqlite) Isolation() sql.IsolationLevel { return sql.LevelDefault }

func (s *sqlite) Unlock(context.Context, Conn) error { return nil }

func (s *sqlite) Check(context.Context, Conn) error { return nil }

func (s *sqlite) ForUpdate() string  { return "" }
func (s *sqlite) SkipLocked() string { return "" }

func (s *sqlite) Time(t time.Time) string { return t.UTC().Format(sqliteTime) }
func (s *sqlite) Instant() string         { return "?" }

func (s *sqlite) Rebind(query string) string { return s.at(s.render(query)) }

func (s *sqlite) Insert(ctx context.Context, c Conn, rows []NewRow, f func(Row) error) error {
	r, err := c.QueryContext(ctx, s.at(s.insert), encode(rows))
	return each(r, err, f)
}

func (s *sqlite) Poll(ctx context.Context, c Conn) ([]PartitionState, error) {
	return partitionStates(c.QueryContext(ctx, s.at(s.probe)))
}

func (s *sqlite) Clock(ctx context.Context, c Conn) (string, error) {
	list, err := texts(c.QueryContext(ctx, "SELECT "+s.Now()))
	if err != nil {
		return "", err
	}
	return list[0], nil
}

// Claim claims from one partition after the other: SQLite has no lateral joins, and one statement
// would save no round trip. Only for the first task of each of many partitions does Claim use one
// statement, which takes a third of the time. SQLite keeps no index entries of deleted rows, but
// the index has the entries of tasks whose functions run in other processes. With a cursor, these
// entries are not read again.
func (s *sqlite) Claim(ctx context.Context, c Conn, q ClaimParams, f func(Row) error) error {
	n := 0
	some := func(claim, plainly string, params ...any) error {
		before := n
		var row arrayRow
		r, err := c.QueryContext(ctx, s.at(claim), params...)
		err = each(r, err, func(r Row) error {
			var text string
			if err := r.Scan(&text); err != nil {
				return err
			}
			n++
			row = row.parse(text)
			return f(row)
		})
		if n == before && err != nil && Classify(err) == Other {
			// The application has written a BLOB into a row, which JSON cannot hold. The statement
			// has failed, so it has claimed nothing.
			r, err = c.QueryContext(ctx, s.at(plainly), params...)
			err = each(r, err, func(r Row) error {
				n++
				return f(r)
			})
		}
		return err
	}
	repeatable, funcs := encode(nonNil(q.Repeatable)), encode(nonNil(q.Funcs))
	if q.Share == 1 && len(q.Partitions) > 1 {
		return some(s.claimFirsts, s.claimFirstsPlainly, q.Process, repeatable, encode(q.marked(s.Time, nil)), q.Until, funcs, q.Limit)
	}
	for _, l := range q.Partitions {
		if n >= q.Limit {
			break
		}
		params := []any{q.Process, repeatable, l.Queue, l.Priority, q.Until, funcs, q.share(q.Limit - n)}
		claim, plainly := s.claim, s.claimPlainly
		if mark, ok := q.Cursors[l]; ok {
			claim, plainly, params = s.refill, s.refillPlainly, append(params, s.Time(mark.RunAt))
		}
		if err := some(claim, plainly, params...); err != nil {
			return err
		}
	}
	return nil
}

// Move needs a transaction, because SQLite has no CTEs that write. A deferred transaction is
// enough, because its first statement writes.
func (s *sqlite) Move(ctx context.Context, c Conn, from From, rows []Outcome) ([]string, error) {
	if from == FromWaiting {
		return s.move(ctx, c, s.copyWaiting, s.dropWaiting, s.dropWaitingTold, idsOf(rows), encode(rows))
	}
	var others []Outcome
	moved, seen, done := make([]string, 0, len(rows)), make(map[string]bool, len(rows)), append(make([]byte, 0, 64*len(rows)), '{')
	for _, o := range rows {
		// A group may hold outcomes of two claims of one task, one of which was lost. It may hold
		// outcomes of two processes: a dispatcher that was expired continues as a new process.
		if seen[o.ID] || o.Version == nil || o != (Outcome{ID: o.ID, Version: o.Version, Process: rows[0].Process, Status: "success"}) {
			others = append(others, o)
			continue
		}
		if seen[o.ID] = true; len(moved) > 0 {
			done = append(done, ',')
		}
		done = strconv.AppendInt(append(appendText(done, o.ID), ':'), *o.Version, 10)
		moved = append(moved, o.ID)
	}
	if len(moved) > 0 {
		var err error
		if moved, err = s.move(ctx, c, s.copyDone, s.dropDone, s.dropDoneTold, moved, string(append(done, '}')), rows[0].Process); err != nil {
			return nil, err
		}
	}
	if len(others) > 0 {
		ids, err := s.move(ctx, c, s.copyRunning, s.dropRunning, s.dropRunningTold, idsOf(others), encode(others))
		if err != nil {
			return nil, err
		}
		moved = append(moved, ids...)
	}
	return moved, nil
}

func (s *sqlite) move(ctx context.Context, c Conn, copied, dropped, told string, ids []string, params ...any) ([]string, error) {
	n, err := affected(c.ExecContext(ctx, s.at(copied), params...))
	if err != nil {
		return nil, err
	}
	if n != int64(len(ids)) { // the fence refused some outcomes, or history already has some ids
		return texts(c.QueryContext(ctx, s.at(told), params...))
	}
	// The same rows are deleted, because no other connection can have written since. So they need
	// not be returned one by one.
	if n, err = affected(c.ExecContext(ctx, s.at(dropped), params...)); err == nil && n != int64(len(ids)) {
		err = fmt.Errorf("%d tasks were copied to history, but %d removed", len(ids), n)
	}
	return ids, err
}

// appendText appends a JSON string. Its fast path is for ids, which almost always consist of digits
// and letters.
func appendText(b []byte, s string) []byte {
	if strings.ContainsFunc(s, func(c rune) bool { return c < ' ' || c > '~' || c == '"' || c == '\\' }) {
		return append(b, encode(s)...)
	}
	return append(append(append(b, '"'), s...), '"')
}

func idsOf(rows []Outcome) []string {
	ids := make([]string, len(rows))
	for i, o := range rows {
		ids[i] = o.ID
	}
	return ids
}

func (s *sqlite) Requeue(ctx context.Context, c Conn, rows []Requeued) ([]string, error) {
	return texts(c.QueryContext(ctx, s.at(s.requeue), encode(rows)))
}

func (s *sqlite) Park(ctx context.Context, c Conn, partitions []Partition, limit int) ([]string, error) {
	var parked []string
	for _, l := range partitions {
		funcs, err := texts(c.QueryContext(ctx, s.at(s.park), l.Queue, l.Priority, limit))
		if err != nil {
			return parked, err
		}
		parked = append(parked, funcs...)
	}
	return parked, nil
}

func (s *sqlite) Unpark(ctx context.Context, c Conn, funcs, queues []string, limit int) (int64, error) {
	return affected(c.ExecContext(ctx, s.at(s.unpark), encode(nonNil(funcs)), list(queues), limit))
}

func (s *sqlite) Orphans(ctx context.Context, c Conn, limit int, f func(Row) error) error {
	r, err := c.QueryContext(ctx, s.at(s.orphans), limit)
	return each(r, err, f)
}

// Prune deletes one status after the other: in the order of time over all statuses, every batch
// would sort all rows that are to be deleted.
func (s *sqlite) Prune(ctx context.Context, c Conn, errors bool, age time.Duration, limit int) (n int64, err error) {
	for _, status := range statuses(errors) {
		if n == int64(limit) {
			break
		}
		some, err := affected(c.ExecContext(ctx, s.at(s.prune), status, Micros(age), int64(limit)-n))
		if err != nil {
			return n, err
		}
		n += some
	}
	return n, nil
}

// Lock takes the file's write lock, which the transaction then holds. The version table is the
// first table of the schema. If that table exists already, a statement that changes nothing takes
// the lock.
func (s *sqlite) Lock(ctx context.Context, c Conn) error {
	if _, err := c.ExecContext(ctx, s.Schema()[0]); err != nil {
		return err
	}
	_, err := c.ExecContext(ctx, s.render("DELETE FROM {version} WHERE false"))
	return err
}

// Begin takes the write lock. In a deferred transaction, a write that follows a read fails at once
// if another connection has written in between, whatever the busy timeout is.
func (s *sqlite) Begin(ctx context.Context, c Conn) error {
	_, err := c.ExecContext(ctx, s.render("DELETE FROM {tasks} WHERE false"))
	return err
}

// StillIn tries to begin a transaction. Inside a transaction, that fails and changes nothing.
// SQLite may have rolled the transaction back after a full disk, an I/O error, too little memory or
// the interruption of a statement that writes (lang_transaction.html).
func (s *sqlite) StillIn(ctx context.Context, c Conn) bool {
	if _, err := c.ExecContext(ctx, "BEGIN"); err != nil {
		return true
	}
	_, _ = c.ExecContext(context.WithoutCancel(ctx), "ROLLBACK")
	return false
}

// Home is main, so it does not ask the connection: without a schema, a temporary table of the
// connection would take precedence.
func (s *sqlite) Home(context.Context, Conn) (string, error) { return "main", nil }

func (s *sqlite) Schema() []string { return s.script(sqliteSchema) }
