package dialect

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

func (m *mysql) Insert(ctx context.Context, c Conn, rows []NewRow, f func(Row) error) error {
	type row struct {
		NewRow
		At      string `json:"at"`
		Created string `json:"created"`
	}
	times := map[string][2]string{}
	r, err := c.QueryContext(ctx, m.at(m.instants), encode(rows))
	err = each(r, err, func(r Row) error {
		var id, created string
		var at sql.NullString
		if err := r.Scan(&id, &at, &created); err != nil {
			return err
		}
		times[id] = [2]string{at.String, created}
		return nil
	})
	if err != nil {
		return err
	}
	all := make([]row, len(rows))
	for i, r := range rows {
		all[i] = row{r, times[r.ID][0], times[r.ID][1]}
	}
	done := all
	if _, err = c.ExecContext(ctx, m.insert, encode(all)); mysqlDuplicate(err) {
		done, err = nil, nil
		// A single row is not tried again: in REPEATABLE READ, each transaction that was refused
		// keeps a lock of the gap in which the row stood. Two of these would deadlock.
		for i := 0; i < len(all) && len(all) > 1; i++ {
			if _, err = c.ExecContext(ctx, m.insert, encode(all[i:i+1])); err == nil {
				done = append(done, all[i])
			} else if !mysqlDuplicate(err) {
				break
			}
			err = nil
		}
	}
	if err != nil {
		return err
	}
	// No further statement follows: its error would belong to a creation that has taken effect.
	for _, r := range done {
		if err := f(insertedRow{r.ID, r.At, r.Created}); err != nil {
			return err
		}
	}
	return nil
}

// insertedRow has the values that an INSERT with RETURNING would return.
type insertedRow [3]string

func (r insertedRow) Scan(dest ...any) error {
	for i, d := range dest {
		if scanner, ok := d.(sql.Scanner); !ok {
			*d.(*string) = r[i]
		} else if err := scanner.Scan(r[i]); err != nil {
			return err
		}
	}
	return nil
}

func mysqlDuplicate(err error) bool {
	code, ok := driverCode(err, "mysql", "Number")
	return ok && code == 1062
}

func (m *mysql) Clock(ctx context.Context, c Conn) (string, error) {
	list, err := texts(c.QueryContext(ctx, "SELECT CAST("+m.Now()+" AS CHAR)"))
	if err != nil {
		return "", err
	}
	return list[0], nil
}

func (m *mysql) Claim(ctx context.Context, c Conn, q ClaimParams, f func(Row) error) error {
	if len(q.Funcs) == 0 {
		return nil
	}
	repeatable, again := marks(q.Repeatable)
	if len(q.Repeatable) == 0 {
		repeatable = "''" // an empty list is not valid SQL, and no function's name is empty
	}
	query, funcs := m.in(strings.Replace(m.partition, "<repeatable>", repeatable, 1), q.Funcs)
	claim := strings.Replace(m.claim, "<repeatable>", repeatable, 1)
	until := m.Now()
	if q.Until != "" {
		until = m.Instant()
	}
	query = strings.Replace(query, "<until>", until, 1)
	return m.begin(ctx, c, func(c Conn) error {
		left := q.Limit
		for _, l := range q.Partitions {
			if left <= 0 {
				break
			}
			params := append(slices.Clone(again), q.Process, l.Queue, l.Priority)
			if q.Until != "" {
				params = append(params, q.Until)
			}
			behind := ""
			if mark, ok := q.Cursors[l]; ok {
				at := m.Time(mark.RunAt)
				behind = mysqlBehind
				params = append(params, at, mark.ID, at)
			}
			params = append(append(params, funcs...), q.Process, q.share(left))
			var ids []string
			var started any
			r, err := c.QueryContext(ctx, strings.Replace(query, "<mark>", behind, 1), params...)
			err = each(r, err, func(r Row) error {
				var id string
				dest := make([]any, len(Columns))
				for i := range dest {
					dest[i] = ignored{}
				}
				dest[0], dest[len(dest)-1] = &id, &started
				if err := r.Scan(dest...); err != nil {
					return err
				}
				ids = append(ids, id)
				return f(r)
			})
			if err != nil || len(ids) == 0 {
				if err != nil {
					return err
				}
				continue
			}
			n, err := m.update(ctx, c, claim, ids, append([]any{q.Process, started}, again...)...)
			if err == nil && int(n) != len(ids) {
				err = fmt.Errorf("of %d tasks that were locked for a claim %d were changed", len(ids), n)
			}
			if err != nil {
				return err
			}
			left -= len(ids)
		}
		return nil
	})
}

// ignored discards a value.
type ignored struct{}

func (ignored) Scan(any) error { return nil }

// marks returns a placeholder for each value.
func marks(values []string) (string, []any) {
	params := make([]any, len(values))
	for i, v := range values {
		params[i] = v
	}
	return strings.TrimSuffix(strings.Repeat("?, ", len(values)), ", "), params
}

func (m *mysql) Move(ctx context.Context, c Conn, from From, rows []Outcome) (ids []string, err error) {
	fenced, copied, drop := m.fenced, m.copyRunning, m.dropRunning
	if from == FromWaiting {
		fenced, copied, drop = m.waiting, m.copyWaiting, m.dropWaiting
	}
	rows = slices.Clone(rows)
	// Every transaction locks the rows in this order.
	slices.SortFunc(rows, func(a, b Outcome) int { return cmp.Compare(a.ID, b.ID) })
	param := encode(rows)
	if from == FromRunning && !slices.ContainsFunc(rows, func(o Outcome) bool { return o.Result != nil || o.Error != nil || o.Errors != nil }) {
		copied = m.copyRunningBare
	}
	err = m.begin(ctx, c, func(c Conn) error {
		n, err := affected(c.ExecContext(ctx, m.at(copied), param))
		if err != nil {
			return err
		}
		if ids = idsOf(rows); n != int64(len(ids)) {
			// The fence refused some outcomes, or history already has some of the ids. The rows
			// that passed the fence are locked.
			if ids, err = texts(c.QueryContext(ctx, m.at(fenced), param)); err != nil {
				return err
			}
		}
		if len(ids) == 0 {
			return nil
		}
		if n, err = affected(c.ExecContext(ctx, m.at(drop), param)); err == nil && n != int64(len(ids)) {
			err = fmt.Errorf("%d tasks were copied to history, but %d removed", len(ids), n)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return ids, nil
}

func (m *mysql) Requeue(ctx context.Context, c Conn, rows []Requeued) (ids []string, err error) {
	param := encode(rows)
	err = m.begin(ctx, c, func(c Conn) (err error) {
		if ids, err = texts(c.QueryContext(ctx, m.at(m.fenced), param)); err != nil || len(ids) == 0 {
			return err
		}
		_, err = c.ExecContext(ctx, m.at(m.requeue), param)
		return err
	})
	if err != nil {
		return nil, err
	}
	return ids, nil
}

// Park compares the functions of the live processes in Go. The server would compare a list inside a
// document by other rules.
func (m *mysql) Park(ctx context.Context, c Conn, partitions []Partition, limit int) (parked []string, err error) {
	err = m.begin(ctx, c, func(c Conn) error {
		parked = nil
		type head struct{ id, name, queue string }
		var found []head
		for _, l := range partitions {
			r, err := c.QueryContext(ctx, m.at(m.head), l.Queue, l.Priority, limit)
			if err := each(r, err, func(r Row) error {
				h := head{queue: l.Queue}
				err := r.Scan(&h.id, &h.name)
				found = append(found, h)
				return err
			}); err != nil {
				return err
			}
		}
		if len(found) == 0 {
			return nil
		}
		// The processes are read after the tasks, so that they include any process that has just
		// unparked some of these tasks.
		live, err := m.live(ctx, c)
		if err != nil {
			return err
		}
		var ids []string
		for _, h := range found {
			if !slices.ContainsFunc(live, func(s server) bool { return s.runs(h.name, h.queue) }) {
				ids = append(ids, h.id)
			}
		}
		if len(ids) == 0 {
			return nil
		}
		r, err := c.QueryContext(ctx, m.heads, encode(ids))
		ids = nil
		if err := each(r, err, func(r Row) error {
			var name, id string
			err := r.Scan(&name, &id)
			parked, ids = append(parked, name), append(ids, id)
			return err
		}); err != nil {
			return err
		}
		_, err = m.update(ctx, c, m.park, ids)
		return err
	})
	if err != nil {
		return nil, err
	}
	return parked, nil
}

// server has the functions and queues of a live process; nil queues are all queues.
type server struct{ funcs, queues []string }

func (s server) runs(name, queue string) bool {
	return slices.Contains(s.funcs, name) && (s.queues == nil || slices.Contains(s.queues, queue))
}

func (m *mysql) live(ctx context.Context, c Conn) (list []server, err error) {
	r, err := c.QueryContext(ctx, m.processes)
	err = each(r, err, func(r Row) error {
		var s server
		var funcs, queues []byte
		if err := r.Scan(&funcs, &queues); err != nil {
			return err
		}
		if err := json.Unmarshal(funcs, &s.funcs); err != nil {
			return err
		}
		if queues != nil {
			if err := json.Unmarshal(queues, &s.queues); err != nil {
				return err
			}
			s.queues = nonNil(s.queues)
		}
		list = append(list, s)
		return nil
	})
	return list, err
}

func (m *mysql) Unpark(ctx context.Context, c Conn, funcs, queues []string, limit int) (n int64, err error) {
	if len(funcs) == 0 {
		return 0, nil
	}
	query, params := m.in(m.unparkable, funcs)
	which := ""
	if len(queues) > 0 {
		list, more := marks(queues)
		which, params = " AND queue IN ("+list+")", append(params, more...)
	}
	err = m.begin(ctx, c, func(c Conn) error {
		ids, err := texts(c.QueryContext(ctx, strings.Replace(query, "<queues>", which, 1), append(params, limit)...))
		if err != nil || len(ids) == 0 {
			return err
		}
		ids, err = texts(c.QueryContext(ctx, m.parked, encode(ids)))
		if err == nil {
			n, err = m.update(ctx, c, m.unpark, ids)
		}
		return err
	})
	return n, err
}

// Orphans finds the tasks without a lock, because the lock would include the running tasks of live
// processes.
func (m *mysql) Orphans(ctx context.Context, c Conn, limit int, f func(Row) error) error {
	ids, err := texts(c.QueryContext(ctx, m.at(m.orphans), limit))
	if err != nil || len(ids) == 0 {
		return err
	}
	r, err := c.QueryContext(ctx, m.orphaned, encode(ids))
	return each(r, err, f)
}

func (m *mysql) Prune(ctx context.Context, c Conn, errors bool, age time.Duration, limit int) (n int64, err error) {
	for _, status := range statuses(errors) {
		err := m.begin(ctx, c, func(c Conn) error {
			ids, err := texts(c.QueryContext(ctx, m.at(m.prunable), status, Micros(age), limit-int(n)))
			if err != nil || len(ids) == 0 {
				return err
			}
			gone, err := affected(c.ExecContext(ctx, m.prune, encode(ids)))
			n += gone
			return err
		})
		if err != nil || n >= int64(limit) {
			return n, err
		}
	}
	return n, nil
}
