package dialect

import (
	"context"
	"database/sql"
	_ "embed"
	"errors"
	"strings"
	"sync"
	"time"
)

//go:embed mysql.sql
var mysqlSchema string

// mysql is the dialect of MySQL and MariaDB: MySQL 8.4, MariaDB 10.6, and later versions. They have
// no common RETURNING and no common CTE that writes. So most operations that are one statement on
// another database are several statements in a transaction here: the caller's transaction, or one
// that begin makes.
//
// Times are DATETIME(6) in UTC, which the session's time zone does not change. A locking read finds
// the rows before a statement changes them. The transaction is READ COMMITTED, so only these rows
// are locked, and no gap lock makes an insert wait.
type mysql struct {
	base
	instants, insert, probe, probeNext, partition, claim, fenced, waiting, copyRunning, copyRunningBare, copyWaiting, dropRunning,
	dropWaiting, queueBetween, queueBehind, firsts, requeue, processes, head, heads, park, unparkable, parked, unpark, orphans, orphaned, prunable, prune string

	polling sync.Mutex
	queues  map[string]time.Time // queues that polls have found, and when last
}

const mysqlTime = "2006-01-02 15:04:05.000000"

// mysqlExact compares as bytes, including trailing spaces, which plain utf8mb4_bin ignores. Each of
// the two comments is executed by one of the two servers.
const mysqlExact = "CHARACTER SET utf8mb4 COLLATE /*!80017 utf8mb4_0900_bin */ /*M! utf8mb4_nopad_bin */"

// mysqlBehind is (run_at, id) > (?, ?) as two ranges of the index. InnoDB appends the id to the
// index. Thousands of tasks that were created at once have the same run_at; the claim does not read
// those before the cursor.
const mysqlBehind = " AND (run_at = CAST(? AS DATETIME(6)) AND id > ? OR run_at > CAST(? AS DATETIME(6)))"

func newMySQL(names Names, clock func() time.Time) *mysql {
	m := &mysql{base: newBase(names, clock, '`', "UTC_TIMESTAMP(6)", func(t time.Time) string {
		return "CAST('" + t.UTC().Format(mysqlTime) + "' AS DATETIME(6))"
	})}
	m.pairs = append(m.pairs, "{exact}", mysqlExact)
	// The times are computed before the insert. The insert cannot return them, and an inserted row
	// may be gone before it is read.
	m.instants = m.render(`
SELECT r.id, CAST(CASE WHEN r.at IS NULL THEN n.now + INTERVAL COALESCE(r.delay, 0) MICROSECOND
	WHEN r.past THEN LEAST(CAST(r.at AS DATETIME(6)), n.now) ELSE CAST(r.at AS DATETIME(6)) END AS CHAR), CAST(n.now AS CHAR)
FROM (SELECT {now} AS now) n, ` + jsonTable("id varchar(36)", "at varchar(32)", "past boolean", "delay bigint") + " r")
	m.insert = m.render(`
INSERT INTO {tasks} (id, func, args, {key}, queue, priority, run_at, state, attempt, uncounted, crashes, max_attempts,
	timeout_ms, repeatable, version, rerun_of, meta, created_at)
SELECT r.id, r.func, r.args, r.{key}, r.queue, r.priority, r.at, 'pending', 0, 0, 0, r.max_attempts, COALESCE(r.timeout_ms, 0), false, 1,
	r.rerun_of, r.meta, r.created
FROM ` + jsonTable("id varchar(36)", "func varchar(255)", "args longtext", "key varchar(255)", "queue varchar(64)", "priority smallint",
		"at varchar(32)", "max_attempts integer", "timeout_ms bigint", "rerun_of varchar(36)", "meta longtext", "created varchar(32)") + " r")
	first := `
SELECT queue, priority, run_at <= {now}, IF(run_at > {now}, TIMESTAMPDIFF(MICROSECOND, {now}, run_at), NULL)
FROM {tasks} FORCE INDEX ({tasks.claim}) WHERE state = 'pending'<behind>
ORDER BY queue, priority, run_at LIMIT 1`
	m.probe = m.render(strings.Replace(first, "<behind>", "", 1))
	m.probeNext = m.render(`
(SELECT '', 0, false, TIMESTAMPDIFF(MICROSECOND, {now}, run_at) FROM {tasks} FORCE INDEX ({tasks.claim})
WHERE state = 'pending' AND queue = ? AND priority = ? AND run_at > {now} ORDER BY run_at LIMIT 1)
UNION ALL
(` + strings.Replace(first, "<behind>", " AND (queue = ? AND priority > ? OR queue > ?)", 1) + ")")
	const queue = "SELECT queue FROM {tasks} FORCE INDEX ({tasks.claim}) WHERE state = 'pending'"
	m.queueBehind = m.render(queue + " AND queue > ? ORDER BY queue LIMIT 1")
	m.queueBetween = m.render("(" + queue + "<bounds> AND queue NOT IN (?" + strings.Repeat(", ?", queuesInPart-1) + ") LIMIT 1)")
	// ORDER BY has all columns of the index: for the order of run_at alone, MySQL would read and
	// sort the whole partition. The limit keeps the servers from copying the inner query into the
	// outer one three times.
	m.firsts = m.render(`
SELECT queue, priority, head <= {now}, IF(head > {now}, TIMESTAMPDIFF(MICROSECOND, {now}, head), NULL)
FROM (
	SELECT k.queue, p.priority, (
		SELECT t.run_at FROM {tasks} t FORCE INDEX ({tasks.claim})
		WHERE t.state = 'pending' AND t.queue = k.queue AND t.priority = p.priority
		ORDER BY t.queue, t.priority, t.run_at LIMIT 1) AS head
	FROM JSON_TABLE(?, '$[*]' COLUMNS (queue varchar(64) {exact} PATH '$')) k
	CROSS JOIN JSON_TABLE('[1, 2, 3, 4]', '$[*]' COLUMNS (priority smallint PATH '$')) p
	LIMIT 1000000000
) h WHERE head IS NOT NULL`)
	// The rows are read as the claim will leave them. This index finds running and parked tasks,
	// too. Separate indexes for them would contain all rows here, not only the running or the
	// parked ones, and would cost a third of a claim.
	m.partition = m.render(`
SELECT id, func, args, {key}, queue, priority, run_at, 'running', attempt + 1, uncounted, crashes, max_attempts, timeout_ms,
	func IN (<repeatable>), version + 1, ?, rerun_of, errors, meta, created_at, {now}
FROM {tasks} FORCE INDEX ({tasks.claim})
WHERE state = 'pending' AND queue = ? AND priority = ? AND run_at <= <until><mark> AND func IN (<list>)
	AND EXISTS (SELECT 1 FROM {processes} WHERE id = ?)
ORDER BY run_at, id LIMIT ? FOR UPDATE SKIP LOCKED`)

	// Here and below, rows of known ids are looked up one by one. STRAIGHT_JOIN keeps the server
	// from making the table the outer loop. FORCE INDEX keeps it from reading a whole small table.
	// Either would lock the whole table, and claims would skip the locked rows. DELETE … WHERE id
	// IN (…) accepts no FORCE INDEX and reads a whole small table.
	const joined = " o STRAIGHT_JOIN {tasks} t FORCE INDEX (PRIMARY) ON t.id = o.id"
	byID := "JSON_TABLE(?, '$[*]' COLUMNS (id varchar(36) {exact} PATH '$'))" + joined
	// An UPDATE names only one table. A Galera node with a limit for write sets (wsrep_max_ws_rows,
	// wsrep_max_ws_size) refuses an UPDATE of a join, with error 4165. It accepts an INSERT or a
	// DELETE of a join.
	update := func(set, state string) string {
		return m.render("UPDATE {tasks} FORCE INDEX (PRIMARY) SET " + set + " WHERE id IN (<list>) AND state = '" + state + "'")
	}
	m.claim = update(`state = 'running', attempt = attempt + 1, version = version + 1, process_id = ?, started_at = ?,
	repeatable = func IN (<repeatable>)`, "pending")
	outcomes := func(fields ...string) string {
		return jsonTable(append([]string{"id varchar(36)", "version bigint", "process varchar(36)"}, fields...)...) + joined + " AND "
	}
	const fence = "t.state = 'running' AND t.version = o.version AND COALESCE(t.process_id, '') = COALESCE(o.process, '')"
	waiting := "t.state IN ('pending', 'parked') AND (o.version IS NULL OR t.version = o.version)"
	// When a client stops waiting, the server goes on waiting and keeps the locks that it has. So
	// the server should wait for less time than the library, as far as possible.
	m.dropRunning = m.render("/*M! SET STATEMENT innodb_lock_wait_timeout = 1 FOR */ DELETE t FROM " + outcomes() + fence)
	m.dropWaiting = m.render("DELETE t FROM " + outcomes() + waiting)
	// A creation that was refused because of the same key may still hold the key's lock. MySQL
	// would wait for this lock as long as innodb_lock_wait_timeout says. So the statement also
	// reads the key there, by its index, and waits neither for the key's lock nor for the task's.
	byKey := fence + " /*!80017 LEFT JOIN {tasks} k FORCE INDEX ({tasks.key}) ON k.{key} = t.{key} */" + mysqlLockTask(", k NOWAIT", "WAIT 1")
	running := fence + mysqlLockTask(" NOWAIT", "WAIT 1")
	waiting += mysqlLockTask("", "")
	m.fenced, m.waiting = m.render("SELECT t.id FROM "+outcomes()+running), m.render("SELECT t.id FROM "+outcomes()+waiting)
	copied := `
INSERT INTO {history} (id, func, args, {key}, queue, priority, run_at, attempt, uncounted, crashes, max_attempts,
	timeout_ms, version, process_id, rerun_of, errors, meta, created_at, started_at, status, reason, result, error,
	finished_at)
SELECT t.id, t.func, t.args, t.{key}, t.queue, t.priority, t.run_at, t.attempt, t.uncounted, t.crashes + COALESCE(o.crashes, 0),
	t.max_attempts, t.timeout_ms, t.version, t.process_id, t.rerun_of, COALESCE(o.errors, t.errors), t.meta,
	t.created_at, t.started_at, o.status, COALESCE(o.reason, ''), o.result, o.error, {now}
FROM `
	bare := strings.NewReplacer("o.errors", "NULL", "o.result", "NULL", "o.error", "NULL").Replace(copied)
	once := "\nON DUPLICATE KEY UPDATE {history}.id = {history}.id"
	said := []string{"status varchar(16)", "reason varchar(32)", "crashes integer"}
	// A temporary table with long texts is on disk, so they are read only where they are needed.
	m.copyRunningBare = m.render(bare + outcomes(said...) + byKey + once)
	said = append(said, "result longtext", "error longtext", "errors longtext")
	m.copyRunning, m.copyWaiting = m.render(copied+outcomes(said...)+byKey+once), m.render(copied+outcomes(said...)+waiting+once)
	// Each row gets different values, so this is an INSERT … ON DUPLICATE KEY UPDATE of rows that
	// exist.
	m.requeue = m.render(`
INSERT INTO {tasks} (id, func, args, queue, priority, run_at, state, attempt, uncounted, crashes, max_attempts, timeout_ms,
	repeatable, version, errors, created_at)
SELECT t.id, t.func, '', t.queue, t.priority, {now} + INTERVAL o.delay MICROSECOND, 'pending', t.attempt,
	t.uncounted + o.uncounted, t.crashes + o.crashes, t.max_attempts, t.timeout_ms, t.repeatable, t.version + 1,
	COALESCE(o.errors, t.errors), t.created_at
FROM ` + outcomes("delay bigint", "uncounted integer", "crashes integer", "errors longtext") + `
	t.state = 'running' AND t.version = o.version AND COALESCE(t.process_id, '') = COALESCE(o.process, '')
ON DUPLICATE KEY UPDATE state = 'pending', version = VALUES(version), process_id = NULL, started_at = NULL,
	run_at = VALUES(run_at), uncounted = VALUES(uncounted), crashes = VALUES(crashes), errors = VALUES(errors)`)

	passOver := mysqlLockTask(" SKIP LOCKED", "SKIP LOCKED")
	m.processes = m.render("SELECT functions, queues FROM {processes}")
	m.head = m.render(`
SELECT id, func FROM {tasks} FORCE INDEX ({tasks.claim})
WHERE state = 'pending' AND queue = ? AND priority = ? AND run_at <= {now} ORDER BY run_at LIMIT ?`)
	m.heads = m.render("SELECT t.func, t.id FROM " + byID + " AND t.state = 'pending'" + passOver)
	m.park = update("state = 'parked', version = version + 1", "pending")
	m.unparkable = m.render(`
SELECT id FROM {tasks} FORCE INDEX ({tasks.claim})
WHERE state = 'parked' AND func IN (<list>)<queues> LIMIT ?`)
	m.parked = m.render("SELECT t.id FROM " + byID + " AND t.state = 'parked'" + passOver)
	m.unpark = update("state = 'pending', version = version + 1", "parked")
	m.orphans = m.render(`
SELECT t.id FROM {tasks} t FORCE INDEX ({tasks.claim})
WHERE t.state = 'running' AND NOT EXISTS (SELECT 1 FROM {processes} p WHERE p.id = t.process_id) LIMIT ?`)
	m.orphaned = m.render("SELECT {t.columns} FROM " + byID + " AND t.state = 'running'" + passOver)
	m.prunable = m.render(`
SELECT id FROM {history} FORCE INDEX ({history.status})
WHERE status = ? AND finished_at < {now} - INTERVAL ? MICROSECOND ORDER BY finished_at LIMIT ? FOR UPDATE SKIP LOCKED`)
	m.prune = m.render("DELETE t FROM " + strings.Replace(byID, "{tasks}", "{history}", 1))
	return m
}

// mysqlLockTask locks only the rows of t, in each server's own way. MySQL refuses to lock a
// JSON_TABLE (3569) and has a clause that names t. MariaDB has no such clause and locks nothing in
// a JSON_TABLE.
func mysqlLockTask(mysql, maria string) string {
	return " FOR UPDATE /*!80017 OF t" + mysql + " */ /*M! " + maria + " */"
}

// jsonTable is a parameter's array as a relation, with a column for each field of its elements. A
// field is a name and a type. Without {exact}, a text would have the database's character set, and
// a character that this set does not contain would become '?' without an error.
func jsonTable(fields ...string) string {
	columns := make([]string, len(fields))
	for i, f := range fields {
		name, kind, _ := strings.Cut(f, " ")
		if strings.HasPrefix(kind, "varchar") || kind == "longtext" {
			kind += " {exact}"
		}
		columns[i] = "`" + name + "` " + kind + " PATH '$." + name + "'"
	}
	return "JSON_TABLE(?, '$[*]' COLUMNS (" + strings.Join(columns, ", ") + "))"
}

func (m *mysql) Name() string { return "mysql" }

func (m *mysql) Serial() bool { return false }
func (m *mysql) Keep() bool   { return false }

func (m *mysql) OneStatement() bool { return false }

func (m *mysql) ForUpdate() string  { return " FOR UPDATE" }
func (m *mysql) SkipLocked() string { return " FOR UPDATE SKIP LOCKED" }

func (m *mysql) Text(column string) string { return column }

func (m *mysql) Latest() string { return " LOCK IN SHARE MODE" }

func (m *mysql) Isolation() sql.IsolationLevel { return sql.LevelReadCommitted }

func (m *mysql) Time(t time.Time) string { return t.UTC().Format(mysqlTime) }
func (m *mysql) Instant() string         { return "CAST(? AS DATETIME(6))" }

func (m *mysql) Rebind(query string) string { return m.at(m.render(query)) }

// begin runs f in c's transaction, or in a new one when c is a pool.
func (m *mysql) begin(ctx context.Context, c Conn, f func(Conn) error) error {
	pool, ok := c.(*sql.DB)
	if !ok {
		return f(c)
	}
	tx, err := pool.BeginTx(ctx, &sql.TxOptions{Isolation: m.Isolation()})
	if err != nil {
		return err
	}
	defer RollBack(ctx, m, tx)
	if err := f(tx); err != nil {
		return err
	}
	return m.End(ctx, tx.Commit)
}

var errDriverExit = errors.New("the driver has ended its goroutine")

// End abandons a COMMIT or ROLLBACK that gets no reply: the driver sends them without a context,
// and database/sql waits for them.
func (m *mysql) End(ctx context.Context, end func() error) error {
	if ctx.Done() == nil {
		return end()
	}
	type ended struct {
		err      error
		panicked any
	}
	done := make(chan ended, 1)
	go func() {
		e := ended{err: errDriverExit}
		defer func() { e.panicked = recover(); done <- e }()
		e.err = end()
	}()
	longer, cancel := Outlive(ctx)
	defer cancel()
	select {
	case e := <-done:
		if e.panicked != nil {
			panic(e.panicked)
		}
		return e.err
	case <-longer.Done():
		return ctx.Err()
	}
}

// in replaces <list> by a placeholder for each value.
func (m *mysql) in(query string, values []string) (string, []any) {
	list, params := marks(values)
	return m.at(strings.Replace(query, "<list>", list, 1)), params
}

// update runs an UPDATE of the rows with these ids. The parameters of the query itself come before
// the ids.
func (m *mysql) update(ctx context.Context, c Conn, query string, ids []string, params ...any) (int64, error) {
	if len(ids) == 0 {
		return 0, nil
	}
	query, list := m.in(query, ids)
	return affected(c.ExecContext(ctx, query, append(params, list...)...))
}
