package outbox

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox/internal/bridge"
	"github.com/gorm-outbox/outbox/internal/commitwatch"
	"github.com/gorm-outbox/outbox/internal/dialect"
	"github.com/gorm-outbox/outbox/internal/guard"
	"github.com/gorm-outbox/outbox/internal/store"
	"github.com/gorm-outbox/outbox/internal/text"
)

// NewTask is an element of a batch.
type NewTask struct {
	Func    string
	Args    any
	Options []CreateOption
}

// Create inserts a task through tx, in whatever transaction tx holds: the task exists if and only
// if that transaction commits, and nothing runs before. It returns the row as it was inserted; its
// ID is known to no dispatcher until then.
//
// Give it the transaction's handle, not the outer *gorm.DB: through that one the task is committed
// at once, whatever becomes of the transaction. What else the handle carries (Model, Where, Select,
// a finished query) makes no difference.
//
// args is a struct, a map or JSON that encodes to an object; nil means no arguments. Where the
// function is registered in this process, its parameters are checked too. Options: StartAt,
// StartAfter, StartTime, MaxAttempts, Timeout, Key, Queue, Priority; without a start time the task
// is due at once.
//
// Errors: ErrNotInstalled, ErrDryRun, ErrNoTransaction, ErrUnknownFunc, ErrBadArgs, ErrBadOption,
// ErrDuplicateKey; after each of them nothing was inserted, and the transaction is still usable. An
// error of the database is wrapped as it is.
func Create(tx *gorm.DB, function string, args any, opts ...CreateOption) (*TaskModel, error) {
	h, err := openToCreate(tx)
	if err != nil {
		return nil, fmt.Errorf("outbox: create %s: %w", function, err)
	}
	task, err := h.prepare(function, args, opts)
	if err != nil {
		return nil, fmt.Errorf("outbox: create %s: %w", function, err)
	}
	if err := h.withRetry(func() error { return h.insert([]*pendingTask{task}) }); err != nil {
		return nil, fmt.Errorf("outbox: create %s: %w", function, err)
	}
	h.created([]*pendingTask{task})
	return task.model, nil
}

// CreateBatch inserts many tasks with few statements: all of them or none. It returns the rows in
// the order given. See Create for all else; errors name the task's index.
func CreateBatch(tx *gorm.DB, tasks ...NewTask) ([]*TaskModel, error) {
	h, err := openToCreate(tx)
	if err != nil {
		return nil, fmt.Errorf("outbox: create batch: %w", err)
	}
	prepared := make([]*pendingTask, len(tasks))
	keys := map[string]int{}
	for i, t := range tasks {
		if prepared[i], err = h.prepare(t.Func, t.Args, t.Options); err != nil {
			return nil, fmt.Errorf("outbox: create batch: task %d, %s: %w", i, t.Func, err)
		}
		if key := prepared[i].model.Key; key != nil {
			if j, ok := keys[*key]; ok {
				return nil, fmt.Errorf("outbox: create batch: task %d, %s: %w: task %d of the batch has the key %s too",
					i, t.Func, ErrDuplicateKey, j, text.Quote(*key))
			}
			keys[*key] = i
		}
	}
	// Two batches that take the same keys in different orders would deadlock.
	ordered := slices.Clone(prepared)
	slices.SortStableFunc(ordered, func(a, b *pendingTask) int { return cmp.Compare(deref(a.model.Key), deref(b.model.Key)) })
	chunks := chunk(ordered)
	insert := func(h handle) error {
		for _, c := range chunks {
			if err := h.insert(c); err != nil {
				return err
			}
		}
		return nil
	}
	err = h.withRetry(func() error {
		if len(chunks) > 1 || len(keys) > 0 {
			return h.inTxOrSavepoint(insert)
		}
		return insert(h)
	})
	var held *DuplicateKeyError
	if errors.As(err, &held) {
		i := keys[held.Key]
		return nil, fmt.Errorf("outbox: create batch: task %d, %s: %w", i, tasks[i].Func, err)
	}
	if err != nil {
		return nil, fmt.Errorf("outbox: create batch: %w", err)
	}
	h.created(prepared)
	models := make([]*TaskModel, len(prepared))
	for i, t := range prepared {
		models[i] = t.model
	}
	return models, nil
}

func chunk(tasks []*pendingTask) [][]*pendingTask {
	var chunks [][]*pendingTask
	start, size := 0, 0
	for i, t := range tasks {
		n := len(t.row.Args) + 512
		if i > start && (i-start >= store.MaxRows || size+n > store.MaxBytes) {
			chunks = append(chunks, tasks[start:i])
			start, size = i, 0
		}
		size += n
	}
	if start < len(tasks) {
		chunks = append(chunks, tasks[start:])
	}
	return chunks
}

// pendingTask is a task on its way into the table.
type pendingTask struct {
	model *TaskModel
	row   dialect.NewRow
	delay time.Duration // until it is due, by this process's clock
}

// prepare checks everything that can be checked without the database.
func (h handle) prepare(function string, args any, opts []CreateOption) (*pendingTask, error) {
	if err := checkName(function); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnknownFunc, err)
	}
	fn := h.p.registry.lookup(function)
	if fn == nil && !h.p.opts.ProducerOnly {
		return nil, h.p.registry.unknown(function)
	}
	raw, err := encodeArgs(fn, args, h.p.opts.MaxArgsBytes)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadArgs, err)
	}
	s, err := resolve(h.p, opts)
	if err != nil {
		return nil, err
	}
	return h.prepared(function, raw, s, nil)
}

// prepared makes the row; of is the finished task that it repeats, if any.
func (h handle) prepared(function string, raw JSON, s settings, of *HistoryModel) (*pendingTask, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return nil, fmt.Errorf("make an id: %w", err)
	}
	t := &TaskModel{
		ID: id.String(), Func: function, Args: raw, Key: s.key, Queue: s.queue, Priority: s.priority, State: StatePending,
		MaxAttempts: s.maxAttempts, TimeoutMS: int64((s.timeout + time.Millisecond - 1) / time.Millisecond), Version: 1,
	}
	if of != nil {
		t.RerunOf, t.Meta = &of.ID, maps.Clone(of.Meta)
	}
	for _, hook := range h.p.opts.Hooks {
		if err := h.onCreate(hook, t); err != nil {
			return nil, err
		}
	}
	if of != nil {
		t.Meta = inherit(t.Meta, of.Meta)
	}
	meta, err := t.Meta.Value()
	if err != nil {
		return nil, err
	}
	row := dialect.NewRow{
		ID: t.ID, Func: t.Func, Args: string(t.Args), Key: t.Key, Queue: t.Queue, Priority: t.Priority,
		MaxAttempts: t.MaxAttempts, TimeoutMS: t.TimeoutMS, RerunOf: t.RerunOf,
	}
	if text, ok := meta.(string); ok {
		if len(text) > h.p.opts.MaxArgsBytes {
			return nil, fmt.Errorf("the hooks' Meta has %d bytes, over the limit of %d (Options.MaxArgsBytes)", len(text), h.p.opts.MaxArgsBytes)
		}
		row.Meta = &text
	}
	delay := s.after
	if s.at.IsZero() {
		row.DelayUS = dialect.Micros(s.after)
	} else {
		delay = s.at.Sub(h.p.now())
		at := h.store.Dialect.Time(roundUp(s.at))
		row.At, row.Past = &at, delay <= 0
	}
	return &pendingTask{model: t, row: row, delay: delay}, nil
}

// onCreate shows a hook a copy of the task and takes back its Meta alone. A change of another field
// has not been checked: it would be stored or dropped silently, so it is an error.
func (h handle) onCreate(hook Hooks, t *TaskModel) error {
	shown := clone(t)
	if err := h.callOnCreate(hook, shown); err != nil {
		return fmt.Errorf("refused by a hook: %w", err)
	}
	if changed := differences(t, shown); len(changed) > 0 {
		return fmt.Errorf("the hook %T has changed %s: OnCreate may set Meta only", hook, strings.Join(changed, ", "))
	}
	t.Meta = shown.Meta
	return nil
}

func (h handle) callOnCreate(hook Hooks, shown *TaskModel) (err error) {
	before := clone(shown)
	defer func() {
		if v := recover(); v != nil {
			*shown = *before
			h.p.log.Error("outbox: hook panicked", "hook", "OnCreate", "panic", guard.PanicText(v))
		}
	}()
	return hook.OnCreate(h.ctx, shown)
}

// clone copies what a new task has, so that a change of the copy is none of the task.
func clone(t *TaskModel) *TaskModel {
	c := *t
	c.Args, c.Meta = slices.Clone(t.Args), maps.Clone(t.Meta)
	c.Key, c.RerunOf = clonePointer(t.Key), clonePointer(t.RerunOf)
	return &c
}

func clonePointer(s *string) *string {
	if s == nil {
		return nil
	}
	c := *s
	return &c
}

// differences names the fields, Meta apart, in which two tasks differ.
func differences(a, b *TaskModel) (names []string) {
	x, y := reflect.ValueOf(a).Elem(), reflect.ValueOf(b).Elem()
	for i := range x.NumField() {
		if name := x.Type().Field(i).Name; name != "Meta" && !reflect.DeepEqual(x.Field(i).Interface(), y.Field(i).Interface()) {
			names = append(names, name)
		}
	}
	return names
}

// inherit adds what the hooks have left out of a re-run's Meta. A hook that makes a new map means
// to set its own key, such as a trace's, and not to lose another's, such as the tenant.
func inherit(m, from Meta) Meta {
	for key, text := range from {
		if _, set := m[key]; set {
			continue
		}
		if m == nil {
			m = Meta{}
		}
		m[key] = text
	}
	return m
}

// now is the process's clock, or the tests'.
func (p *Plugin) now() time.Time {
	if p.opts.Clock != nil {
		return p.opts.Clock()
	}
	return time.Now()
}

// insert inserts one chunk. A key that is held leaves the chunk's other rows inserted: the caller
// rolls back.
func (h handle) insert(tasks []*pendingTask) error {
	rows := make([]dialect.NewRow, len(tasks))
	for i, t := range tasks {
		rows[i] = t.row
	}
	inserted, err := h.store.Insert(h.ctx, h.traced(), rows)
	var held *store.DuplicateKeyError
	if errors.As(err, &held) {
		return &DuplicateKeyError{Key: held.Key, ID: held.ID}
	}
	if err != nil {
		return err
	}
	for _, t := range tasks {
		in := inserted[t.row.ID]
		t.model.RunAt, t.model.CreatedAt = in.RunAt, in.CreatedAt
	}
	return nil
}

// created hints at new tasks.
func (h handle) created(tasks []*pendingTask) {
	if bridge.Created != nil && h.inTx {
		if over := commitwatch.Over(transaction(h.conn)); over != nil {
			bridge.Created(h.p, over)
		}
	}
	var due []*TaskModel
	for _, t := range tasks {
		if t.delay > 0 {
			h.p.commits.CreatedFor(transaction(h.conn), t.delay)
			continue
		}
		due = append(due, t.model)
	}
	h.wake(due)
}

// wake hints at tasks that are due as soon as the caller's transaction commits. A Waker's error is
// logged and no more: the rows are in, so an error would tell the caller that they are not. If the
// Waker has broken the transaction, the next statement or the commit says so.
func (h handle) wake(due []*TaskModel) {
	if len(due) == 0 {
		return
	}
	for i, w := range h.p.opts.Wakers {
		err := h.tell(w)
		if failed := &h.p.wakersFail[i]; err == nil {
			failed.Store(false)
		} else if !failed.Swap(true) {
			h.p.log.Warn("outbox: other processes are not woken, so their next scan finds new tasks; said once until it works again",
				"waker", fmt.Sprintf("%T", w), "err", err)
		}
	}
	// What this process cannot run is no reason to ask again and again.
	ours := slices.DeleteFunc(slices.Clone(due), func(t *TaskModel) bool { return t.Func != "" && h.p.registry.lookup(t.Func) == nil })
	if len(ours) > 0 {
		h.p.commits.Created(transaction(h.conn), partitionsOf(ours))
	}
}

// partitionsOf yields the ids of tasks and where they wait, which is not known of a task that was
// only rescheduled.
func partitionsOf(tasks []*TaskModel) iter.Seq2[string, dialect.Partition] {
	return func(yield func(string, dialect.Partition) bool) {
		for _, t := range tasks {
			var partition dialect.Partition
			if t.Queue != "" {
				partition = dialect.Partition{Queue: t.Queue, Priority: t.Priority}
			}
			if !yield(t.ID, partition) {
				return
			}
		}
	}
}

// tell calls a Waker, whose panic is an error.
func (h handle) tell(w Waker) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &guard.Panicked{Text: guard.PanicText(v)}
		}
	}()
	return w.Created(h.ctx, h.conn, h.store.Pool)
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
