package admin

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
)

// row is a task in a list, from either table, without its large columns.
type row struct {
	ID          string
	Func        string
	Args        *string // nil when larger than maxPreview
	Key         *string
	Queue       string
	Priority    int
	RunAt       time.Time
	State       outbox.State
	Attempt     int
	Uncounted   int
	MaxAttempts int
	Version     int64
	ProcessID   *string
	CreatedAt   time.Time
	StartedAt   *time.Time
	Status      outbox.Status
	Reason      outbox.Reason
	Error       *string
	FinishedAt  *time.Time
	RerunID     *string
}

const (
	maxPreview = 4096 // of arguments, in characters
	previews   = "CASE WHEN length({args}) <= 4096 THEN {args} END AS args"
	columns    = "id, func, " + previews + ", {key}, queue, priority, run_at, attempt, uncounted, max_attempts, version, process_id, created_at, started_at"
	ofTasks    = columns + ", state"
	ofHistory  = columns + ", status, reason, substr(error, 1, 400) AS error, finished_at, rerun_id"

	// searchCap is the maximum number of rows that a search with a redactor reads. The database
	// cannot do this search, because it must not search in text that the redactor hides.
	searchCap = 2000
)

// source is one table's part of a list, in the order of an index.
type source struct {
	model   any
	columns string
	where   []string // states are literals, because partial indexes need them
	params  []any
	order   string // run_at, finished_at, or id alone
	desc    bool
}

// sources returns the sources of a state. Waiting tasks have one source for each partition, because
// the index has the tasks of a partition in the order of their start times.
func (s *site) sources(ctx context.Context, f filter, at time.Time) ([]source, error) {
	tasks := func(where ...string) source {
		return source{model: &outbox.TaskModel{}, columns: ofTasks, where: where, order: "id", desc: true}
	}
	history := func(where ...string) source {
		return source{model: &outbox.HistoryModel{}, columns: ofHistory, where: where, order: "finished_at", desc: true}
	}
	switch f.State {
	case running:
		return []source{tasks("state = 'running'", "process_id > ''")}, nil // the index of running tasks
	case parked:
		return []source{tasks("state = 'parked'", "func > ''")}, nil // the index of parked tasks
	case failed:
		return []source{history("status = 'error'", "rerun_id IS NULL")}, nil
	case handled:
		return []source{history("status = 'error'", "rerun_id IS NOT NULL")}, nil
	case done:
		return []source{history("status = 'success'")}, nil
	case cancelled:
		return []source{history("status = 'cancelled'")}, nil
	case pending, scheduled:
		partitions, err := s.d.Poll(ctx, s.db.Statement.ConnPool)
		if err != nil {
			return nil, err
		}
		comparison := "run_at <= " + s.d.Instant()
		if f.State == scheduled {
			comparison = "run_at > " + s.d.Instant()
		}
		var list []source
		for _, l := range partitions {
			if f.Queue != "" && l.Queue != f.Queue {
				continue
			}
			src := tasks("state = 'pending'", "queue = ?", "priority = ?", comparison)
			src.params = []any{l.Queue, l.Priority, s.d.Time(at)}
			src.order, src.desc = "run_at", false
			list = append(list, src)
		}
		return list, nil
	}
	byID := history()
	byID.order = "id"
	return []source{tasks(), byID}, nil
}

// query is a source's statement without columns, order and limit.
func (s *site) query(ctx context.Context, src source, f filter) *gorm.DB {
	tx := s.read(ctx).Model(src.model)
	params := src.params
	for _, w := range src.where {
		n := strings.Count(w, "?")
		tx = tx.Where(w, params[:n]...)
		params = params[n:]
	}
	for column, value := range map[string]string{"func": f.Func, "queue": f.Queue, "key": f.Key, "id": f.ID, "process_id": f.Process} {
		if value != "" {
			tx = tx.Where(s.db.Statement.Quote(column)+" = ?", value)
		}
	}
	if f.Args != "" && s.opts.Redact == nil {
		tx = tx.Where("lower("+s.d.Text("args")+") LIKE lower(?) ESCAPE '!'", contains(f.Args))
	}
	if f.Error != "" {
		if _, ok := src.model.(*outbox.HistoryModel); ok {
			tx = tx.Where(`lower(error) LIKE lower(?) ESCAPE '!'`, contains(f.Error))
		} else {
			tx = tx.Where("lower("+s.d.Text("errors")+") LIKE lower(?) ESCAPE '!'", contains(f.Error))
		}
	}
	dated := "run_at"
	if _, ok := src.model.(*outbox.HistoryModel); ok {
		dated = "finished_at"
	}
	if f.State == all {
		dated = "created_at"
	}
	if !f.From.IsZero() {
		tx = tx.Where(dated+" >= "+s.d.Instant(), s.d.Time(f.From))
	}
	if !f.To.IsZero() {
		tx = tx.Where(dated+" <= "+s.d.Instant(), s.d.Time(f.To))
	}
	if !f.asOf.IsZero() {
		if dated != "finished_at" {
			dated = "created_at"
		}
		tx = tx.Where(dated+" <= "+s.d.Instant(), s.d.Time(f.asOf))
	}
	return tx
}

// contains is a LIKE pattern for a part of a text.
func contains(s string) string {
	return "%" + strings.NewReplacer("!", "!!", "%", "!%", "_", "!_").Replace(s) + "%"
}

// page is a part of a list.
type page struct {
	rows         []row
	newer, older *cursor // nil where the list ends
}

// fetch reads the part of a list that its cursor names.
func (s *site) fetch(ctx context.Context, f filter, at time.Time) (page, error) {
	list, err := s.sources(ctx, f, at)
	if err != nil {
		return page{}, err
	}
	limit := f.Limit + 1 // one more row tells whether the list goes on
	var rows []row
	next, more, read := f.Cursor, true, 0
	for more && len(rows) < limit && read < searchCap {
		var part []row
		for _, src := range list {
			some, err := s.part(ctx, src, f, next, limit)
			if err != nil {
				return page{}, err
			}
			part = append(part, some...)
		}
		back := next != nil && next.back
		order(part, list, back)
		more = len(part) >= limit
		part = part[:min(len(part), limit)]
		read += len(part)
		if len(part) > 0 {
			last := part[len(part)-1]
			next = &cursor{back: back, at: last.place(list), id: last.ID}
		}
		if f.Args == "" || s.opts.Redact == nil {
			rows = part
			break
		}
		for _, r := range part {
			if s.matches(ctx, r, f.Args) {
				rows = append(rows, r)
			}
		}
	}
	p := page{}
	cut := len(rows) > f.Limit
	unread := !cut && more && read >= searchCap
	rows = rows[:min(len(rows), f.Limit)]
	back := f.Cursor != nil && f.Cursor.back
	if back {
		slices.Reverse(rows)
	}
	p.rows = rows
	if len(rows) > 0 {
		first, last := rows[0], rows[len(rows)-1]
		if f.Cursor != nil && !back || back && cut {
			p.newer = &cursor{back: true, at: first.place(list), id: first.ID}
		}
		if back || cut {
			p.older = &cursor{at: last.place(list), id: last.ID}
		}
	}
	if unread && !back {
		p.older = next // the search continues where it stopped
	}
	return p, nil
}

// part reads a source from a cursor on, in the cursor's direction.
func (s *site) part(ctx context.Context, src source, f filter, c *cursor, limit int) (rows []row, err error) {
	return rows, s.ordered(ctx, src, f, c).Limit(limit).Find(&rows).Error
}

// ordered is the statement of a part without its limit.
func (s *site) ordered(ctx context.Context, src source, f filter, c *cursor) *gorm.DB {
	tx := s.query(ctx, src, f).Select(strings.NewReplacer("{key}", s.db.Statement.Quote("key"), "{args}", s.d.Text("args")).Replace(src.columns))
	desc := src.desc != (c != nil && c.back)
	sign, direction := ">", ""
	if desc {
		sign, direction = "<", " DESC"
	}
	if src.order == "id" {
		if c != nil {
			tx = tx.Where("id "+sign+" ?", c.id)
		}
		tx = tx.Order("id" + direction)
	} else {
		if c != nil {
			// The first condition is redundant, but it tells every database where to begin in the
			// index.
			tx = tx.Where(src.order+" "+sign+"= "+s.d.Instant(), s.d.Time(c.at)).
				Where("("+src.order+", id) "+sign+" ("+s.d.Instant()+", ?)", s.d.Time(c.at), c.id)
		}
		tx = tx.Order(src.order + direction + ", id" + direction)
	}
	return tx
}

// place is a row's time in the order of the list.
func (r row) place(list []source) time.Time {
	switch list[0].order {
	case "run_at":
		return r.RunAt
	case "finished_at":
		return *r.FinishedAt
	}
	return time.Time{}
}

// order merges the rows of several sources, in the direction of reading.
func order(rows []row, list []source, back bool) {
	if len(list) < 2 {
		return
	}
	slices.SortFunc(rows, func(a, b row) int {
		n := a.place(list).Compare(b.place(list))
		if n == 0 {
			n = strings.Compare(a.ID, b.ID)
		}
		if list[0].desc != back {
			return -n
		}
		return n
	})
}

// matches searches in the redacted arguments.
func (s *site) matches(ctx context.Context, r row, part string) bool {
	raw, err := s.args(ctx, r)
	if err != nil {
		return false
	}
	return bytes.Contains(bytes.ToLower(s.redact(r.Func, raw)), bytes.ToLower([]byte(part)))
}

// args returns the arguments of a row of a list. The row itself has only small arguments. A task
// that no longer exists has no arguments.
func (s *site) args(ctx context.Context, r row) ([]byte, error) {
	if r.Args != nil {
		return []byte(*r.Args), nil
	}
	task, past, err := outbox.Lookup(s.conn(ctx), r.ID)
	switch {
	case errors.Is(err, outbox.ErrNotFound):
		return nil, nil
	case err != nil:
		return nil, err
	case task != nil:
		return task.Args, nil
	}
	return past.Args, nil
}

// redact returns the part of a function's document that may be shown.
func (s *site) redact(path string, raw []byte) []byte {
	if s.opts.Redact == nil || raw == nil {
		return raw
	}
	return s.opts.Redact(path, bytes.Clone(raw))
}

// maxCount is the limit of counts: a larger count is shown as "10,000+".
const maxCount = 10_000

// count counts the tasks that a filter finds, up to maxCount+1.
func (s *site) count(ctx context.Context, f filter, at time.Time) (int, error) {
	list, err := s.sources(ctx, f, at)
	total := 0
	for _, src := range list {
		if err != nil || total > maxCount {
			break
		}
		var n int64
		err = s.read(ctx).Table("(?) AS part", s.query(ctx, src, f).Select("1 AS one").Limit(maxCount+1-total)).Count(&n).Error
		total += int(n)
	}
	return total, err
}

// counts are the numbers beside the states, each as count returns it.
func (s *site) counts(ctx context.Context, at time.Time) (map[string]int, error) {
	m, err := s.failures(ctx)
	for _, state := range states[1:] {
		if err != nil {
			return nil, err
		}
		if _, known := m[state]; !known {
			m[state], err = s.count(ctx, filter{State: state}, at)
		}
	}
	return m, err
}

// failures counts the failed and the handled tasks in one statement: no index distinguishes them,
// and most of the time goes into reading rows that are not in memory. If history has more such rows
// than the limit, the smaller count may be missing.
func (s *site) failures(ctx context.Context) (map[string]int, error) {
	const limit = 2*maxCount + 1
	var read struct{ Ended, Handled int }
	some := s.read(ctx).Model(&outbox.HistoryModel{}).Select("rerun_id").Where("status = 'error'").Limit(limit)
	if err := s.read(ctx).Table("(?) AS part", some).Select("count(*) AS ended, count(rerun_id) AS handled").Scan(&read).Error; err != nil {
		return nil, err
	}
	m := map[string]int{}
	for state, n := range map[string]int{failed: read.Ended - read.Handled, handled: read.Handled} {
		if n > maxCount || read.Ended < limit {
			m[state] = min(n, maxCount+1)
		}
	}
	return m, nil
}
