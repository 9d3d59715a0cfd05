package dialect

import (
	"context"
	"database/sql"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"math/bits"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

//go:embed postgres.sql
var postgresSchema string

// postgres is the dialect of PostgreSQL 12 and later. It passes lists of functions as JSON, so it
// needs no array type of a driver.
type postgres struct {
	base
	insert, insertPlain, insertMany, insertAlike, insertAlikeKeys, probe, claim, claimMany, moveRunning, moveWaiting, finish, exchange, exchangeMany, requeue, park, unpark, orphans, prune string
}

const postgresTime = "2006-01-02 15:04:05.999999-07:00"

func newPostgres(names Names, clock func() time.Time) *postgres {
	// clock_timestamp(), because now() is the transaction's start. It is inside a scalar
	// sub-select, because a volatile function cannot be an index condition. The sub-select's result
	// can, because it is computed once.
	p := &postgres{base: newBase(names, clock, '"', "(SELECT clock_timestamp())", func(t time.Time) string {
		return "timestamptz '" + t.UTC().Format(postgresTime) + "'"
	})}
	const into = `
INSERT INTO {tasks} (id, func, args, key, queue, priority, run_at, state, attempt, uncounted, crashes, max_attempts,
	timeout_ms, repeatable, version, rerun_of, meta, created_at)`
	const onlyNewKeys = "ON CONFLICT (key) WHERE key IS NOT NULL DO NOTHING\n"
	// For a single row each value is a parameter: without JSON the statement takes a third less
	// time. It also needs no subquery for the time: statement_timestamp() is the same everywhere in
	// the statement, and it is not the transaction's start.
	start := "statement_timestamp()"
	if clock != nil {
		start = "{now}"
	}
	const values = `$1::text, $2::text, $3::text::json, $4::text, $5::text, $6::bigint,
	CASE WHEN $7::text IS NULL THEN {start} + $9::bigint * interval '1 microsecond'
	     WHEN $8::boolean THEN least($7::text::timestamptz, {start}) ELSE $7::text::timestamptz END,
	'pending', 0, 0, 0, $10::bigint, $11::bigint, false, 1, $12::text, $13::text::json, {start}`
	p.insert = p.render(strings.ReplaceAll(into+"\nVALUES ("+values+")\n"+onlyNewKeys+"RETURNING id, run_at, created_at", "{start}", start))
	// In most tasks the columns that are omitted here are NULL. Each value that is passed or
	// returned costs the driver and the server time.
	p.insertPlain = p.render(strings.ReplaceAll(`
INSERT INTO {tasks} (id, func, args, queue, priority, run_at, state, attempt, uncounted, crashes, max_attempts, timeout_ms, repeatable,
	version, created_at)
VALUES ($1::text, $2::text, $3::text::json, $4::text, $5::bigint, {start} + $6::bigint * interval '1 microsecond', 'pending', 0, 0, 0,
	$7::bigint, $8::bigint, false, 1, {start})
RETURNING run_at, created_at`, "{start}", start))
	// Rows that are alike share all values except ids, arguments and keys, and these values are
	// passed once: parsing rows of JSON costs more than inserting them.
	alike := into + "\nSELECT " + strings.NewReplacer("$1::text", "r.id", "$3::text::json", "r.args::json", "$4::text", "r.key", "{start}", "n.now").Replace(values) + `
FROM (SELECT {now} AS now OFFSET 0) n, unnest($1::text::text[], $3::text::text[], $4::text::text[]) AS r(id, args, key)
{conflict}RETURNING id, run_at, created_at`

	many := into + `
SELECT r.id, r.func, r.args::json, r.key, r.queue, r.priority,
	CASE WHEN r.at IS NULL THEN n.now + coalesce(r.delay, 0) * interval '1 microsecond'
	     WHEN r.past THEN least(r.at, n.now) ELSE r.at END,
	'pending', 0, 0, 0, r.max_attempts, coalesce(r.timeout_ms, 0), false, 1, r.rerun_of, r.meta::json, n.now
FROM (SELECT {now} AS now OFFSET 0) n, json_to_recordset($1::text::json) AS r(id text, func text, args text, key text,
	queue text, priority smallint, at timestamptz, past boolean, delay bigint, max_attempts integer,
	timeout_ms bigint, rerun_of text, meta text)
{conflict}RETURNING id, run_at, created_at`
	// Most rows of a batch have the same times, which are returned once for all of them.
	counted := func(insert, conflict, ids string) string {
		return p.render("WITH i AS (" + strings.Replace(insert, "{conflict}", conflict, 1) + "\n)\n" +
			"SELECT count(*), " + ids + ", run_at, created_at FROM i GROUP BY run_at, created_at")
	}
	p.insertMany = counted(many, onlyNewKeys, "json_agg(id)::text")
	p.insertAlike, p.insertAlikeKeys = counted(alike, "", "'[]'"), counted(alike, onlyNewKeys, "json_agg(id)::text") // without keys it is all or none

	// The partitions are found by skipping through the claim's index, so the cost depends on the
	// number of partitions, not of tasks. The first task of each partition decides whether a task
	// is due: for EXISTS (… run_at <= now) the planner may scan the table.
	p.probe = p.render(`
WITH RECURSIVE part(queue, priority, run_at) AS (
	(SELECT queue, priority, run_at FROM {tasks} WHERE state = 'pending' ORDER BY queue, priority, run_at LIMIT 1)
	UNION ALL
	SELECT n.queue, n.priority, n.run_at FROM part l CROSS JOIN LATERAL (
		SELECT t.queue, t.priority, t.run_at FROM {tasks} t
		WHERE t.state = 'pending' AND (t.queue, t.priority) > (l.queue, l.priority)
		ORDER BY t.queue, t.priority, t.run_at LIMIT 1) n
)
SELECT l.queue, l.priority, l.run_at <= n.now,
	(SELECT (extract(epoch FROM t.run_at - n.now) * 1000000)::bigint FROM {tasks} t
		WHERE t.state = 'pending' AND t.queue = l.queue AND t.priority = l.priority AND t.run_at > n.now
		ORDER BY t.run_at LIMIT 1)
FROM part l, (SELECT {now} AS now OFFSET 0) n`)

	// ARRAY(SELECT … FOR UPDATE SKIP LOCKED) runs once. The planner may run IN (SELECT …) or a
	// joined CTE again for every row when its statistics are stale. The rows are locked, so their
	// ctid does not change, and a ctid needs no index. Of the limits only the last one counts; see
	// about. Rows beyond it are not read, so they are not locked.
	//
	// Here and below, state || '' keeps the planner from finding a row of known id through a
	// partial index on its state. After a while, that index holds mostly entries of dead rows. The
	// cursor of a partition keeps a refill from walking over index entries that a long transaction
	// keeps alive.
	claim := func(param ...string) string {
		return strings.NewReplacer("{process}", param[0], "{repeatable}", param[1], "{partitions}", param[2], "{until}", param[3],
			"{funcs}", param[4], "{limit}", param[5]).Replace(`
UPDATE {tasks} AS t SET state = 'running', attempt = t.attempt + 1, version = t.version + 1, process_id = {process},
	started_at = {now},
	repeatable = t.func = ANY (ARRAY(SELECT json_array_elements_text({repeatable}::text::json)))
WHERE t.ctid = ANY (ARRAY(
	SELECT c.ctid FROM (
		SELECT * FROM json_to_recordset({partitions}::text::json) AS l(queue text, priority smallint, run_at timestamptz, id text)
		LIMIT /*partitions*/ 1) l
	CROSS JOIN LATERAL (/*shared*/
		SELECT c.ctid FROM {tasks} c
		WHERE c.state = 'pending' AND c.queue = l.queue AND c.priority = l.priority AND (c.run_at, c.id) > (l.run_at, l.id)
			AND c.run_at <= coalesce(nullif({until}::text, '')::timestamptz, {now})
			AND c.func = ANY (ARRAY(SELECT json_array_elements_text({funcs}::text::json)))
		ORDER BY c.run_at, c.id LIMIT /*limit*/ 1 FOR UPDATE SKIP LOCKED/*share*/) c
	LIMIT {limit}::bigint))
	AND t.state || '' = 'pending' AND EXISTS (SELECT 1 FROM {processes} WHERE id = {process})
RETURNING {t.columns}`)
	}
	p.claim = p.render(claim("$1", "$2", "$3", "$4", "$5", "$6"))
	p.claimMany = manyFuncs(p.claim)

	move := `
WITH o AS MATERIALIZED (
	SELECT * FROM json_to_recordset($1::text::json) AS o(id text, version bigint, process text, status text, reason text,
		result text, error text, errors text, crashes integer)
), d AS (
	DELETE FROM {tasks} t USING o
	WHERE t.id = ANY (ARRAY(SELECT id FROM o)) AND t.id = o.id AND {fence}
	RETURNING t.id, t.func, t.args, t.key, t.queue, t.priority, t.run_at, t.attempt, t.uncounted,
		t.crashes + coalesce(o.crashes, 0) AS crashes, t.max_attempts, t.timeout_ms, t.version, t.process_id, t.rerun_of,
		coalesce(o.errors::json, t.errors) AS errors, t.meta, t.created_at, t.started_at,
		o.status, coalesce(o.reason, '') AS reason, o.result::json, o.error
), h AS (
	INSERT INTO {history} (id, func, args, key, queue, priority, run_at, attempt, uncounted, crashes, max_attempts,
		timeout_ms, version, process_id, rerun_of, errors, meta, created_at, started_at, status, reason, result, error,
		finished_at)
	SELECT d.*, {now} FROM d{new}
)`
	// Not ON CONFLICT (id), because a history that is partitioned has another key. The sub-select
	// looks the ids up one by one, whatever the statistics say.
	const isNew = "\n\tWHERE (SELECT x.id FROM {history} x WHERE x.id = d.id LIMIT 1) IS NULL"
	const fence = "t.state || '' = 'running' AND t.version = o.version AND coalesce(t.process_id, '') = coalesce(o.process, '')"
	running := strings.Replace(move, "{fence}", fence, 1)
	p.moveRunning = p.render(strings.Replace(running, "{new}", isNew, 1) + "\nSELECT id FROM d")
	p.moveWaiting = p.render(strings.Replace(strings.Replace(move, "{new}", isNew, 1), "{fence}",
		"t.state || '' IN ('pending', 'parked') AND (o.version IS NULL OR t.version = o.version)", 1) + "\nSELECT id FROM d")
	// The statement returns the moved ids as a list, or "all". If history already has an id, these
	// statements fail and leave the group to Move: a check costs more than a tenth of the
	// statement.
	finish := strings.Replace(running, "{new}", "", 1)
	const told = `SELECT CASE WHEN (SELECT count(*) FROM d) = (SELECT count(*) FROM o) THEN 'all'
	ELSE (SELECT coalesce(json_agg(id), '[]')::text FROM d) END`
	p.finish = p.render(finish + "\n" + told)
	p.exchange = p.render(finish + ", c AS (" + claim("$2", "$3", "$4", "$5", "$6", "$7") + "\n)\n" +
		told + strings.Repeat(", NULL", len(Columns)-1) + "\n" +
		"UNION ALL SELECT {columns} FROM c")
	p.exchangeMany = manyFuncs(p.exchange)

	p.requeue = p.render(`
WITH o AS MATERIALIZED (
	SELECT * FROM json_to_recordset($1::text::json) AS o(id text, version bigint, process text, delay bigint, uncounted integer,
		crashes integer, errors text)
)
UPDATE {tasks} t SET state = 'pending', version = t.version + 1, process_id = NULL, started_at = NULL,
	run_at = {now} + o.delay * interval '1 microsecond',
	uncounted = t.uncounted + o.uncounted, crashes = t.crashes + o.crashes,
	errors = coalesce(o.errors::json, t.errors)
FROM o
WHERE t.id = ANY (ARRAY(SELECT id FROM o)) AND t.id = o.id AND t.state || '' = 'running' AND t.version = o.version
	AND coalesce(t.process_id, '') = coalesce(o.process, '')
RETURNING t.id`)

	// Park looks only at the head of each partition. Tasks that no process claims stand there, and
	// the cost is bounded. Tasks that are not parked are not locked: another process's claim would
	// skip locked tasks.
	p.park = p.render(`
WITH live AS MATERIALIZED (
	SELECT f.func, q.queue FROM {processes} p
	CROSS JOIN LATERAL json_array_elements_text(p.functions) AS f(func)
	LEFT JOIN LATERAL json_array_elements_text(p.queues) AS q(queue) ON true
)
UPDATE {tasks} t SET state = 'parked', version = t.version + 1
WHERE t.id = ANY (ARRAY(
	SELECT k.id FROM {tasks} k
	WHERE k.id = ANY (ARRAY(
		SELECT c.id FROM (
			SELECT * FROM json_to_recordset($1::text::json) AS l(queue text, priority smallint)
			LIMIT json_array_length($1::text::json)) l
		CROSS JOIN LATERAL (
			SELECT h.id, h.func, h.queue FROM {tasks} h
			WHERE h.state = 'pending' AND h.queue = l.queue AND h.priority = l.priority AND h.run_at <= {now}
			ORDER BY h.run_at LIMIT $2::bigint) c
		WHERE NOT EXISTS (SELECT 1 FROM live WHERE live.func = c.func AND live.queue IS NULL)
			AND NOT EXISTS (SELECT 1 FROM live WHERE live.func = c.func AND live.queue = c.queue)))
		AND k.state || '' = 'pending'
	FOR UPDATE SKIP LOCKED))
	AND t.state || '' = 'pending'
RETURNING t.func`)
	p.unpark = p.render(`
UPDATE {tasks} t SET state = 'pending', version = t.version + 1
WHERE t.id = ANY (ARRAY(
	SELECT id FROM {tasks}
	WHERE state = 'parked' AND func = ANY (ARRAY(SELECT json_array_elements_text($1::text::json)))
		AND ($2::text IS NULL OR queue = ANY (ARRAY(SELECT json_array_elements_text($2::text::json))))
	LIMIT $3::bigint FOR UPDATE SKIP LOCKED))
	AND t.state || '' = 'parked'`)

	p.orphans = p.render(`
SELECT {t.columns} FROM {tasks} t
WHERE t.state = 'running' AND NOT EXISTS (SELECT 1 FROM {processes} p WHERE p.id = t.process_id)
LIMIT $1::bigint FOR UPDATE OF t SKIP LOCKED`)
	// One status after the other: in the order of time over all statuses, every batch would sort
	// all rows that are to be deleted. Each partition of the table has its own ctids, so the
	// conditions are checked again for the rows that are found by ctid.
	p.prune = p.render(`
DELETE FROM {history} WHERE status = ANY (ARRAY(SELECT json_array_elements_text($1::text::json)))
	AND finished_at < {now} - $2::bigint * interval '1 microsecond' AND ctid = ANY (ARRAY(
	SELECT h.ctid FROM json_array_elements_text($1::text::json) AS s(status) CROSS JOIN LATERAL (
		SELECT ctid FROM {history}
		WHERE status = s.status AND finished_at < {now} - $2::bigint * interval '1 microsecond'
		ORDER BY finished_at LIMIT $3::bigint FOR UPDATE SKIP LOCKED) h
	LIMIT $3::bigint))`)
	return p
}

func (p *postgres) Name() string { return "postgres" }
func (p *postgres) Serial() bool { return false }
func (p *postgres) Keep() bool   { return false }

func (p *postgres) OneStatement() bool { return true }

func (p *postgres) Latest() string { return "" }

func (p *postgres) Text(column string) string { return "CAST(" + column + " AS text)" }

// Isolation does not use default_transaction_isolation: at a higher level, concurrent claims make
// each other fail.
func (p *postgres) Isolation() sql.IsolationLevel { return sql.LevelReadCommitted }

func (p *postgres) Unlock(context.Context, Conn) error { return nil }

func (p *postgres) ForUpdate() string  { return " FOR UPDATE" }
func (p *postgres) SkipLocked() string { return " FOR UPDATE SKIP LOCKED" }

func (p *postgres) Time(t time.Time) string { return t.UTC().Format(postgresTime) }
func (p *postgres) Instant() string         { return "CAST(CAST(? AS text) AS timestamptz)" }

func (p *postgres) Rebind(query string) string {
	var b strings.Builder
	n := 0
	for _, c := range p.at(p.render(query)) {
		if c != '?' {
			b.WriteRune(c)
			continue
		}
		n++
		b.WriteString("$" + strconv.Itoa(n))
	}
	return b.String()
}

func (p *postgres) Insert(ctx context.Context, c Conn, rows []NewRow, f func(Row) error) error {
	n := rows[0]
	if len(rows) == 1 && n.Key == nil && n.At == nil && n.RerunOf == nil && n.Meta == nil {
		r, err := c.QueryContext(ctx, p.at(p.insertPlain), n.ID, n.Func, n.Args, n.Queue, n.Priority, n.DelayUS, n.MaxAttempts, n.TimeoutMS)
		return each(r, err, func(r Row) error { return f(rowWithID{r, n.ID}) })
	}
	if len(rows) == 1 {
		r, err := c.QueryContext(ctx, p.at(p.insert), n.ID, n.Func, n.Args, n.Key, n.Queue, n.Priority, n.At, n.Past, n.DelayUS, n.MaxAttempts,
			n.TimeoutMS, n.RerunOf, n.Meta)
		return each(r, err, f)
	}
	var r *sql.Rows
	var err error
	if alike(rows) {
		same := p.insertAlike
		if slices.ContainsFunc(rows, func(r NewRow) bool { return r.Key != nil }) {
			// ON CONFLICT writes a second WAL record for every row, even for a row without a key.
			same = p.insertAlikeKeys
		}
		r, err = c.QueryContext(ctx, p.at(same), textArray(rows, func(r *NewRow) *string { return &r.ID }), n.Func,
			textArray(rows, func(r *NewRow) *string { return &r.Args }), textArray(rows, func(r *NewRow) *string { return r.Key }),
			n.Queue, n.Priority, n.At, n.Past, n.DelayUS, n.MaxAttempts, n.TimeoutMS, n.RerunOf, n.Meta)
	} else {
		r, err = c.QueryContext(ctx, p.at(p.insertMany), encode(rows))
	}
	return each(r, err, func(r Row) error {
		var n int
		var list sql.RawBytes
		var runAt, createdAt any
		if err := r.Scan(&n, &list, &runAt, &createdAt); err != nil {
			return err
		}
		ids := make([]string, 0, n)
		if n == len(rows) {
			for _, row := range rows {
				ids = append(ids, row.ID)
			}
		} else if err := json.Unmarshal(list, &ids); err != nil {
			return err
		}
		for _, id := range ids {
			if err := f(arrayRow{values: []any{id, runAt, createdAt}}); err != nil {
				return err
			}
		}
		return nil
	})
}

// rowWithID is a row that begins with an id, which the statement has not returned.
type rowWithID struct {
	Row
	id string
}

func (r rowWithID) Scan(dest ...any) error {
	return errors.Join(assign(dest[0], r.id), r.Row.Scan(dest[1:]...))
}

// alike reports whether rows differ only in their ids, arguments and keys.
func alike(rows []NewRow) bool {
	same := func(a, b *string) bool { return a == b || a != nil && b != nil && *a == *b }
	first := rows[0]
	return !slices.ContainsFunc(rows[1:], func(r NewRow) bool {
		if !same(r.At, first.At) || !same(r.RerunOf, first.RerunOf) || !same(r.Meta, first.Meta) {
			return true
		}
		r.ID, r.Args, r.Key, r.At, r.RerunOf, r.Meta = first.ID, first.Args, first.Key, first.At, first.RerunOf, first.Meta
		return r != first
	})
}

// textArray returns one value of each row as the text of an array. Every driver can pass a text.
func textArray(rows []NewRow, value func(*NewRow) *string) string {
	var b strings.Builder
	b.WriteByte('{')
	for i := range rows {
		if i > 0 {
			b.WriteByte(',')
		}
		v := value(&rows[i])
		if v == nil {
			b.WriteString("NULL")
			continue
		}
		b.WriteByte('"')
		arrayEscape.WriteString(&b, *v)
		b.WriteByte('"')
	}
	b.WriteByte('}')
	return b.String()
}

var arrayEscape = strings.NewReplacer(`\`, `\\`, `"`, `\"`)

func (p *postgres) Poll(ctx context.Context, c Conn) ([]PartitionState, error) {
	return partitionStates(c.QueryContext(ctx, p.at(p.probe)))
}

func (p *postgres) Clock(ctx context.Context, c Conn) (string, error) {
	// A plain cast to text depends on the session's DateStyle.
	list, err := texts(c.QueryContext(ctx, "SELECT to_char(("+p.Now()+") AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || '+00:00'"))
	if err != nil {
		return "", err
	}
	return list[0], nil
}

func (p *postgres) Claim(ctx context.Context, c Conn, q ClaimParams, f func(Row) error) error {
	query := p.claim
	if len(q.Funcs) > fewFuncs {
		query = p.claimMany
	}
	query, args := about(query, q, p.claimArgs(q))
	r, err := c.QueryContext(ctx, p.at(query), args...)
	return each(r, err, f)
}

// manyFuncs is a claim that looks functions up in a hash table. An array is compared with each row
// element by element, which is faster for a short array. IS TRUE keeps the planner from making a
// join of it: the planner might run the join in the opposite direction.
func manyFuncs(claim string) string {
	return funcsInArray.ReplaceAllString(claim, "($1 IN ($2)) IS TRUE")
}

var funcsInArray = regexp.MustCompile(`([ct]\.func) = ANY \(ARRAY\((SELECT json_array_elements_text\(.*?\))\)\)`)

// fewFuncs is the largest number of functions that are compared one by one.
const fewFuncs = 50

// about tells the planner how many partitions and rows a claim is for, rounded up so that only few
// texts are prepared. If the numbers were parameters, the planner would know them only if it
// planned every single execution. Otherwise it may estimate the claim as so large that it compiles
// it (jit), which takes longer than the claim. A claim that shares its rows between partitions has
// one more limit, which costs the other claims nothing.
func about(query string, q ClaimParams, args []any) (string, []any) {
	limit, shared, share := q.Limit, "", ""
	if 0 < q.Share && q.Share < q.Limit {
		limit, shared = q.Share, "SELECT ctid FROM ("
		args = append(args, q.Share)
		share = fmt.Sprintf(") c LIMIT $%d::bigint", len(args))
	}
	return strings.NewReplacer("/*partitions*/ 1", roundUp(len(q.Partitions)), "/*limit*/ 1", roundUp(limit), "/*shared*/", shared,
		"/*share*/", share).Replace(query), args
}

// roundUp rounds up to a power of two.
func roundUp(n int) string { return strconv.Itoa(1 << bits.Len(uint(max(n, 1)-1))) }

func (p *postgres) claimArgs(q ClaimParams) []any {
	head := "-infinity"
	return []any{q.Process, encode(nonNil(q.Repeatable)), encode(q.marked(p.Time, &head)), q.Until, encode(nonNil(q.Funcs)), q.Limit}
}

func (p *postgres) Complete(ctx context.Context, c Conn, rows []Outcome) (moved []string, all bool, err error) {
	list, err := texts(c.QueryContext(ctx, p.at(p.finish), encode(rows)))
	if err != nil {
		return nil, false, err
	}
	return allOrListed(list[0])
}

func allOrListed(text string) (moved []string, all bool, err error) {
	if text == "all" {
		return nil, true, nil
	}
	err = json.Unmarshal([]byte(text), &moved)
	return moved, false, err
}

func (p *postgres) CompleteAndClaim(ctx context.Context, c Conn, rows []Outcome, q ClaimParams, f func(Row) error) (moved []string, all bool, err error) {
	first := true
	query := p.exchange
	if len(q.Funcs) > fewFuncs {
		query = p.exchangeMany
	}
	query, args := about(query, q, append([]any{encode(rows)}, p.claimArgs(q)...))
	r, err := c.QueryContext(ctx, p.at(query), args...)
	err = each(r, err, func(r Row) error {
		if !first {
			return f(r)
		}
		first = false
		var list string
		dest := make([]any, len(Columns))
		for i := range dest {
			dest[i] = new(any)
		}
		dest[0] = &list
		err := r.Scan(dest...)
		if err == nil {
			moved, all, err = allOrListed(list)
		}
		return err
	})
	return moved, all, err
}

func (p *postgres) Move(ctx context.Context, c Conn, from From, rows []Outcome) ([]string, error) {
	query := p.moveRunning
	if from == FromWaiting {
		query = p.moveWaiting
	}
	return texts(c.QueryContext(ctx, p.at(query), encode(rows)))
}

func (p *postgres) Requeue(ctx context.Context, c Conn, rows []Requeued) ([]string, error) {
	return texts(c.QueryContext(ctx, p.at(p.requeue), encode(rows)))
}

func (p *postgres) Park(ctx context.Context, c Conn, partitions []Partition, limit int) ([]string, error) {
	return texts(c.QueryContext(ctx, p.at(p.park), encode(partitions), limit))
}

func (p *postgres) Unpark(ctx context.Context, c Conn, funcs, queues []string, limit int) (int64, error) {
	return affected(c.ExecContext(ctx, p.at(p.unpark), encode(nonNil(funcs)), list(queues), limit))
}

func (p *postgres) Orphans(ctx context.Context, c Conn, limit int, f func(Row) error) error {
	r, err := c.QueryContext(ctx, p.at(p.orphans), limit)
	return each(r, err, f)
}

func (p *postgres) Prune(ctx context.Context, c Conn, errors bool, age time.Duration, limit int) (int64, error) {
	return affected(c.ExecContext(ctx, p.at(p.prune), encode(statuses(errors)), Micros(age), limit))
}

func (p *postgres) Lock(ctx context.Context, c Conn) error {
	// The key is arbitrary; it stands for "outbox schema".
	_, err := c.ExecContext(ctx, "SELECT pg_advisory_xact_lock(7034128519042)")
	return err
}

func (p *postgres) Begin(context.Context, Conn) error { return nil }

// StillIn does not ask the server: after an error, it refuses every statement until the rollback.
// An explicit COMMIT makes the savepoint fail.
func (p *postgres) StillIn(context.Context, Conn) bool { return true }

// Home is not always current_schema(), the first schema of the search_path: the tables may be in a
// later one.
func (p *postgres) Home(ctx context.Context, c Conn) (string, error) {
	return home(c.QueryContext(ctx, `SELECT coalesce((SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
	WHERE c.oid = to_regclass($1) AND c.relpersistence <> 't'), current_schema())`, p.render("{tasks}")))
}

func (p *postgres) Schema() []string { return p.script(postgresSchema) }
