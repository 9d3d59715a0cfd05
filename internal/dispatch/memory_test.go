package dispatch

import (
	"context"
	"database/sql/driver"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gorm-outbox/outbox/internal/dialect"
	"github.com/gorm-outbox/outbox/internal/store"
)

// memory is a database in memory for tests under a fake clock: rows by key, row locks, transactions
// that others see when they commit. Its statements do what internal/dialect asks of real ones. A
// serial one lets one transaction write at a time. Nothing blocks on anything but channels and
// timers.
type memory struct {
	serial bool

	mu     sync.Mutex
	rows   map[string]any // store.Task, store.History, memProcess or an effect's count, by kind and id
	locks  map[string]*memTx
	writer *memTx // of a serial database

	buried func(p memProcess) // told of a process that was declared dead
	wrong  func(format string, args ...any)
}

type memProcess struct {
	id    string
	funcs []string
	beats int64
	at    time.Time
}

type memTx struct {
	m      *memory
	writes map[string]any // nil: deleted
	saved  map[string]map[string]any
	done   chan struct{}
	over   bool
}

type memResult struct {
	columns int
	rows    [][]driver.Value
	n       int64
}

type memStatement func(tx *memTx) memResult

// blocked is what a statement panics with that needs a row which another transaction has locked.
type blocked struct{ by *memTx }

func newMemory(serial bool) *memory {
	return &memory{serial: serial, rows: map[string]any{}, locks: map[string]*memTx{}}
}

func (m *memory) begin() *memTx {
	return &memTx{m: m, writes: map[string]any{}, saved: map[string]map[string]any{}, done: make(chan struct{})}
}

// exec runs a statement in a transaction, waiting for locks.
func (m *memory) exec(ctx context.Context, tx *memTx, f memStatement) (memResult, error) {
	for {
		r, by := m.attempt(tx, f)
		if by == nil {
			return r, nil
		}
		busy := time.NewTimer(time.Second)
		select {
		case <-by.done:
		case <-ctx.Done():
			return r, ctx.Err()
		case <-busy.C:
			if m.serial {
				return r, errBusy
			}
		}
		busy.Stop()
	}
}

func (m *memory) attempt(tx *memTx, f memStatement) (r memResult, by *memTx) {
	m.mu.Lock()
	defer m.mu.Unlock()
	before := maps.Clone(tx.writes)
	defer func() {
		if v := recover(); v != nil {
			b, ok := v.(blocked)
			if !ok {
				panic(v)
			}
			tx.writes, by = before, b.by
		}
	}()
	return f(tx), nil
}

// end commits or rolls back.
func (tx *memTx) end(commit bool) {
	m := tx.m
	m.mu.Lock()
	defer m.mu.Unlock()
	if tx.over {
		return
	}
	tx.over = true
	if commit {
		for k, v := range tx.writes {
			if v == nil {
				delete(m.rows, k)
			} else {
				m.rows[k] = v
			}
		}
	}
	maps.DeleteFunc(m.locks, func(_ string, by *memTx) bool { return by == tx })
	if m.writer == tx {
		m.writer = nil
	}
	close(tx.done)
}

func (tx *memTx) get(key string) any {
	if v, mine := tx.writes[key]; mine {
		return v
	}
	return tx.m.rows[key]
}

// free reports whether a row is not locked by another transaction.
func (tx *memTx) free(key string) bool {
	by := tx.m.locks[key]
	return by == nil || by == tx
}

func (tx *memTx) lock(key string) {
	if tx.m.serial {
		if tx.m.writer != nil && tx.m.writer != tx {
			panic(blocked{tx.m.writer})
		}
		tx.m.writer = tx
	}
	if !tx.free(key) {
		panic(blocked{tx.m.locks[key]})
	}
	tx.m.locks[key] = tx
}

func (tx *memTx) put(key string, v any) {
	tx.lock(key)
	tx.writes[key] = v
}

func all[T any](tx *memTx, less func(a, b T) int) (list []T) {
	keys := maps.Clone(tx.m.rows)
	maps.Copy(keys, tx.writes)
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		if v, ok := tx.get(k).(T); ok {
			list = append(list, v)
		}
	}
	if less != nil {
		slices.SortStableFunc(list, less)
	}
	return list
}

func tasks(tx *memTx) []store.Task {
	return all(tx, func(a, b store.Task) int { return a.RunAt.Compare(b.RunAt) })
}

func processes(tx *memTx) map[string]memProcess {
	byID := map[string]memProcess{}
	for _, p := range all[memProcess](tx, nil) {
		byID[p.id] = p
	}
	return byID
}

func (tx *memTx) putTask(t store.Task) { t.Version++; tx.put("task "+t.ID, t) }

// finish moves a task to history.
func (tx *memTx) finish(t store.Task, o dialect.Outcome) {
	tx.put("task "+t.ID, nil)
	if tx.get("history "+t.ID) != nil {
		tx.m.wrong("task %s was finished twice", t.ID)
	}
	h := store.History{ID: t.ID, Func: t.Func, Attempt: t.Attempt, Uncounted: t.Uncounted, Crashes: t.Crashes + o.Crashes,
		MaxAttempts: t.MaxAttempts, Version: t.Version, ProcessID: t.ProcessID, Status: o.Status, Reason: o.Reason}
	tx.put("history "+t.ID, h)
}

// statement finds out what a text means: one of the store, or one of memDialect's.
func (m *memory) statement(query string, args []any) memStatement {
	text := func(i int) string { return fmt.Sprint(args[i]) }
	ids := func(tx *memTx, list []string) memResult {
		r := memResult{columns: 1}
		for _, id := range list {
			r.rows = append(r.rows, []driver.Value{id})
		}
		return r
	}
	starts := func(s string) bool { return strings.HasPrefix(query, s) }
	switch {
	case starts("SELECT coalesce(max(version)"):
		return func(*memTx) memResult {
			return memResult{columns: 1, rows: [][]driver.Value{{int64(dialect.Version)}}}
		}
	case starts("INSERT INTO {processes}"):
		return func(tx *memTx) memResult {
			p := memProcess{id: text(0), beats: 1, at: time.Now()}
			_ = json.Unmarshal([]byte(text(3)), &p.funcs)
			tx.put("process "+p.id, p)
			return memResult{n: 1}
		}
	case starts("DELETE FROM {processes}"):
		return func(tx *memTx) memResult {
			p, there := tx.get("process " + text(0)).(memProcess)
			if !there || len(args) == 2 && p.beats != args[1].(int64) {
				return memResult{}
			}
			if len(args) == 2 {
				m.buried(p)
			}
			tx.put("process "+p.id, nil)
			return memResult{n: 1}
		}
	case starts("UPDATE {processes}"):
		return func(tx *memTx) memResult {
			p, there := tx.get("process " + text(0)).(memProcess)
			if !there {
				return memResult{}
			}
			p.beats, p.at = p.beats+1, time.Now()
			tx.put("process "+p.id, p)
			return memResult{n: 1}
		}
	case starts("SELECT id, beats FROM {processes}"):
		return func(tx *memTx) memResult {
			r, alive, counts := memResult{columns: 2}, processes(tx), map[string]int64{}
			for _, t := range tasks(tx) {
				switch _, there := alive[t.Owner()]; {
				case t.State == store.Parked:
					counts["parked"]++
				case t.State == store.Running && !there:
					counts["orphans"]++
				case t.State == store.Running && *t.ProcessID == text(0):
					counts["owned"]++
				}
			}
			for id, p := range alive {
				counts[id] = p.beats
			}
			for id, n := range counts {
				r.rows = append(r.rows, []driver.Value{id, n})
			}
			return r
		}
	case starts("SELECT id FROM {processes}"):
		return func(tx *memTx) memResult { return ids(tx, slices.Collect(maps.Keys(processes(tx)))) }
	case starts("SELECT {columns} FROM {tasks} WHERE state = 'running'"):
		return func(tx *memTx) memResult {
			r := memResult{columns: len(dialect.Columns)}
			for _, t := range tasks(tx) {
				if t.State == store.Running && t.Owner() == text(0) {
					r.rows = append(r.rows, taskValues(t))
				}
			}
			return r
		}
	case starts("SELECT id FROM {tasks} WHERE id = ? FOR UPDATE"):
		return func(tx *memTx) memResult {
			if tx.lock("task " + text(0)); tx.get("task "+text(0)) == nil {
				return ids(tx, nil)
			}
			return ids(tx, []string{text(0)})
		}
	case starts("SELECT id, {key} FROM {tasks} WHERE id IN"), starts("SELECT id FROM {tasks} WHERE id IN"):
		skip := strings.HasSuffix(query, " SKIP LOCKED")
		return func(tx *memTx) memResult {
			var found []string
			for i := range args {
				key := "task " + text(i)
				if skip && !tx.free(key) || tx.get(key) == nil {
					continue
				}
				if skip {
					tx.lock(key)
				}
				found = append(found, text(i))
			}
			r := ids(tx, found)
			if skip { // with their keys, of which there are none
				r.columns = 2
				for i := range r.rows {
					r.rows[i] = append(r.rows[i], nil)
				}
			}
			return r
		}
	case strings.Contains(query, "FROM {history} WHERE id"):
		return func(tx *memTx) memResult {
			r := memResult{columns: 25}
			if h, there := tx.get("history " + text(0)).(store.History); there {
				r.rows = append(r.rows, []driver.Value{h.ID, h.Func, "{}", nil, "", int64(0), h.RunAt, int64(h.Attempt), int64(h.Uncounted),
					int64(h.Crashes), int64(h.MaxAttempts), int64(0), h.Version, *h.ProcessID, nil, nil, nil, h.CreatedAt, nil,
					h.Status, h.Reason, nil, nil, h.FinishedAt, nil})
			}
			return r
		}
	case starts("SAVEPOINT"):
		return func(tx *memTx) memResult { tx.saved[query[10:]] = maps.Clone(tx.writes); return memResult{} }
	case starts("RELEASE SAVEPOINT"):
		return func(*memTx) memResult { return memResult{} }
	case starts("ROLLBACK TO SAVEPOINT"):
		return func(tx *memTx) memResult { tx.writes = maps.Clone(tx.saved[query[22:]]); return memResult{} }
	case starts("EFFECT"):
		return func(tx *memTx) memResult {
			n, _ := tx.get("effect " + text(0)).(int)
			tx.put("effect "+text(0), n+1)
			return memResult{n: 1}
		}
	case starts("POLL"):
		return func(tx *memTx) memResult {
			r := memResult{columns: 4}
			for _, t := range tasks(tx) {
				if t.State == store.Pending {
					until := time.Until(t.RunAt)
					r.rows = append(r.rows, []driver.Value{t.Queue, int64(t.Priority), until <= 0, int64(until)})
				}
			}
			return r
		}
	case starts("CLAIM"):
		var q memClaim
		decode(text(0), &q)
		return func(tx *memTx) memResult { return tx.claim(q) }
	case starts("MOVE"):
		var list []dialect.Outcome
		decode(text(0), &list)
		return func(tx *memTx) memResult {
			var moved []string
			for _, o := range list {
				tx.lock("task " + o.ID)
				if t, there := tx.get("task " + o.ID).(store.Task); there && t.State == store.Running && t.Version == *o.Version && t.Owner() == o.Process {
					tx.finish(t, o)
					moved = append(moved, o.ID)
				}
			}
			return ids(tx, moved)
		}
	case starts("REQUEUE"):
		var list []dialect.Requeued
		decode(text(0), &list)
		return func(tx *memTx) memResult {
			var back []string
			for _, o := range list {
				tx.lock("task " + o.ID)
				if t, there := tx.get("task " + o.ID).(store.Task); there && t.State == store.Running && t.Version == o.Version && t.Owner() == o.Process {
					t.State, t.ProcessID, t.StartedAt = store.Pending, nil, nil
					t.RunAt, t.Uncounted, t.Crashes = time.Now().Add(time.Duration(o.DelayUS)*time.Microsecond), t.Uncounted+o.Uncounted, t.Crashes+o.Crashes
					tx.putTask(t)
					back = append(back, o.ID)
				}
			}
			return ids(tx, back)
		}
	case starts("ORPHANS"):
		return func(tx *memTx) memResult {
			r, alive := memResult{columns: len(dialect.Columns)}, processes(tx)
			for _, t := range tasks(tx) {
				if _, there := alive[t.Owner()]; t.State == store.Running && !there && tx.free("task "+t.ID) && len(r.rows) < int(args[0].(int64)) {
					tx.lock("task " + t.ID)
					r.rows = append(r.rows, taskValues(t))
				}
			}
			return r
		}
	}
	panic("the database in memory does not know: " + query)
}

func (tx *memTx) claim(q memClaim) memResult {
	r := memResult{columns: len(dialect.Columns)}
	if tx.get("process "+q.Process) == nil {
		return r
	}
	if tx.m.serial {
		tx.lock("anything")
	}
	for i, l := range q.Partitions {
		end := q.Limit
		if q.Share > 0 {
			end = min(end, len(r.rows)+q.Share)
		}
		for _, t := range tasks(tx) {
			if len(r.rows) == end || t.State != store.Pending || t.Queue != l.Queue || t.Priority != l.Priority ||
				!q.Cursors[i].Before(dialect.Cursor{RunAt: t.RunAt, ID: t.ID}) ||
				t.RunAt.After(time.Now()) || !slices.Contains(q.Funcs, t.Func) || !tx.free("task "+t.ID) {
				continue
			}
			now := time.Now()
			t.State, t.Attempt, t.ProcessID, t.StartedAt, t.Repeatable = store.Running, t.Attempt+1, &q.Process, &now, slices.Contains(q.Repeatable, t.Func)
			tx.putTask(t)
			r.rows = append(r.rows, taskValues(tx.get("task "+t.ID).(store.Task)))
		}
	}
	return r
}

func decode(text string, v any) {
	if err := json.Unmarshal([]byte(text), v); err != nil {
		panic(err)
	}
}

func taskValues(t store.Task) []driver.Value {
	values := make([]driver.Value, 0, len(dialect.Columns))
	for _, v := range []any{t.ID, t.Func, "{}", nil, t.Queue, t.Priority, t.RunAt, t.State, t.Attempt, t.Uncounted, t.Crashes,
		t.MaxAttempts, t.TimeoutMS, t.Repeatable, t.Version, t.ProcessID, nil, nil, nil, t.CreatedAt, t.StartedAt} {
		value, err := driver.DefaultParameterConverter.ConvertValue(v)
		if err != nil {
			panic(err)
		}
		values = append(values, value)
	}
	return values
}
