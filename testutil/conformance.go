package testutil

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/oracle"
)

// Conformance tests the library's promises on databases that you open, with your driver, settings
// and plugins. When it passes, you can rely on the promises there:
//
//	func TestOutboxOnOurDatabase(t *testing.T) {
//		testutil.Conformance(t, func(t testing.TB) *gorm.DB { return openOurs(t) })
//	}
//
// Each call of open must return a new, empty database (or schema) that several connections can use,
// without this library's plugin. open closes the database in t.Cleanup. Conformance takes some
// seconds. A failure names the promise and prints the task's whole story.
func Conformance(t *testing.T, open func(testing.TB) *gorm.DB) {
	for _, c := range []struct {
		name string
		test func(*testing.T, *conformance)
	}{
		{"a task exists if and only if its transaction commits", conformCreation},
		{"each ending gives one row of history, and effects only with success", conformEndings},
		{"two dispatchers run each task once", conformTwo},
		{"a process that was declared dead cannot write", conformFence},
		{"cancel, reschedule, rerun and keys", conformChanges},
		{"texts, numbers and times come back as they went", conformValues},
		{"what nobody can run is parked until somebody can", conformParked},
		{"a session that is terminated leaves no effect", conformTerminated},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, newConformance(t, open)) })
	}
}

// conformance is one database under test.
type conformance struct {
	t       *testing.T
	db      *gorm.DB
	o       *oracle.Oracle
	created []oracle.Expect
	lost    atomic.Int32 // number of refused outcomes
}

func newConformance(t *testing.T, open func(testing.TB) *gorm.DB) *conformance {
	c := &conformance{t: t, db: open(t)}
	var err error
	// Runs have a database of their own, because on some databases a transaction keeps all other
	// connections from writing.
	if c.o, err = oracle.New(c.db, open(t)); err == nil {
		err = c.o.Migrate(t.Context())
	}
	c.must(err)
	p := c.plugin(true)
	c.must(c.db.Use(p))
	c.must(p.Migrate(t.Context()))
	return c
}

func (c *conformance) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatalf("testutil: conformance: %v", err)
	}
}

// plugin returns a plugin with a handler of every kind for every ending. Several plugins may be
// bound to the database.
func (c *conformance) plugin(producer bool) *outbox.Plugin {
	p := outbox.New(outbox.Options{
		Logger: slog.New(slog.DiscardHandler), Scan: "@every 50ms", Heartbeat: time.Second, HeartbeatLimit: 30 * time.Second,
		Backoff: func(int) time.Duration { return 0 }, ProducerOnly: producer, Hooks: []outbox.Hooks{&lostClaims{n: &c.lost}},
	})
	if producer {
		return p
	}
	for name, end := range endings {
		p.Handle("plain."+name, func(ctx context.Context) error { return c.end(ctx, c.o.Ran(ctx), end) })
		p.Handle("again."+name, func(ctx context.Context) error { return c.end(ctx, c.o.Ran(ctx), end) }, outbox.Idempotent())
		p.Handle("tx."+name, func(ctx context.Context, tx *gorm.DB) error {
			return c.end(ctx, errors.Join(c.o.Ran(ctx), c.o.Did(ctx, tx)), end)
		})
	}
	return p
}

func (c *conformance) end(ctx context.Context, err error, end func(context.Context) error) error {
	if err != nil {
		return err
	}
	return end(ctx)
}

var endings = map[string]func(context.Context) error{
	"ok":     func(context.Context) error { return nil },
	"error":  func(context.Context) error { return errors.New("a\x00b\xff, on purpose") },
	"panic":  func(context.Context) error { panic("on purpose") },
	"goexit": func(context.Context) error { runtime.Goexit(); return nil },
	"second": func(ctx context.Context) error { // the second attempt succeeds
		if task, _ := outbox.TaskFrom(ctx); task.Attempt == 1 {
			return errors.New("on purpose")
		}
		return nil
	},
}

var kindOf = map[string]oracle.Kind{"plain": oracle.Ordinary, "again": oracle.Idempotent, "tx": oracle.Transactional}

// lostClaims counts refused outcomes.
type lostClaims struct {
	outbox.NopHooks
	n *atomic.Int32
}

func (l *lostClaims) OnFinish(_ context.Context, _ *outbox.TaskModel, f outbox.Outcome) {
	if errors.Is(f.Err, outbox.ErrClaimLost) {
		l.n.Add(1)
	}
}

// create creates a task through tx. fate is the fate of tx's transaction.
func (c *conformance) create(tx *gorm.DB, kind, ending string, fate oracle.Fate, opts ...outbox.CreateOption) *outbox.TaskModel {
	c.t.Helper()
	task, err := outbox.Create(tx, kind+"."+ending, nil, opts...)
	c.must(err)
	c.created = append(c.created, oracle.Created(task, kindOf[kind], fate))
	return task
}

// start runs a plugin until the returned function is called.
func (c *conformance) start(p *outbox.Plugin) (stop func()) {
	c.t.Helper()
	c.must(p.Initialize(c.db))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	var stopped atomic.Bool
	stop = func() {
		if stopped.CompareAndSwap(false, true) {
			cancel()
			if err := <-done; err != nil {
				c.t.Errorf("testutil: conformance: %v", err)
			}
		}
	}
	c.t.Cleanup(stop)
	return stop
}

// drained runs all tasks on a plugin, and then checks them with the oracle.
func (c *conformance) drained() {
	c.t.Helper()
	stop := c.start(c.plugin(false))
	c.eventually("all tasks end", func() bool { return c.left() == 0 })
	stop()
	c.verdict()
}

func (c *conformance) left() (n int64) {
	c.must(c.db.Model(&outbox.TaskModel{}).Count(&n).Error)
	return n
}

func (c *conformance) verdict() {
	c.t.Helper()
	violations, err := c.o.Check(c.t.Context(), oracle.Question{Created: c.created, All: true, Rest: true, Stopped: true})
	c.must(err)
	for _, v := range violations {
		c.t.Errorf("%s", v)
	}
}

func (c *conformance) eventually(what string, holds func() bool) {
	c.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for limit := time.Now().Add(30 * time.Second); !holds(); <-tick.C {
		if time.Now().After(limit) {
			c.verdict() // prints the tasks' stories
			c.t.Fatalf("testutil: conformance: not within 30 s: %s", what)
		}
	}
}

func (c *conformance) past(id string) *outbox.HistoryModel {
	c.t.Helper()
	_, past, err := outbox.Lookup(c.db, id)
	c.must(err)
	if past == nil {
		c.t.Fatalf("testutil: conformance: task %s has not ended", id)
	}
	return past
}

func conformCreation(t *testing.T, c *conformance) {
	stop := c.start(c.plugin(false)) // runs from the start, so that it could run uncommitted tasks
	undo := errors.New("undo")
	c.must(c.db.Transaction(func(tx *gorm.DB) error {
		c.create(tx, "plain", "ok", oracle.Committed)
		if err := tx.Transaction(func(tx *gorm.DB) error {
			c.create(tx, "plain", "ok", oracle.RolledBack)
			return undo
		}); !errors.Is(err, undo) {
			return fmt.Errorf("nested transaction: %w", err)
		}
		return tx.Transaction(func(tx *gorm.DB) error {
			c.create(tx, "tx", "ok", oracle.Committed)
			return nil
		})
	}))
	if err := c.db.Transaction(func(tx *gorm.DB) error {
		c.create(tx, "tx", "ok", oracle.RolledBack)
		return undo
	}); !errors.Is(err, undo) {
		t.Fatal(err)
	}
	func() {
		defer func() { _ = recover() }()
		_ = c.db.Transaction(func(tx *gorm.DB) error {
			c.create(tx, "plain", "ok", oracle.RolledBack)
			panic(undo)
		})
	}()
	c.eventually("the committed ones end", func() bool { return c.left() == 0 })
	stop()
	c.verdict()
}

func conformEndings(t *testing.T, c *conformance) {
	for kind := range kindOf {
		for ending := range endings {
			c.create(c.db, kind, ending, oracle.Committed)
			c.create(c.db, kind, ending, oracle.Committed, outbox.MaxAttempts(2))
		}
	}
	c.drained()
	var n int64
	c.must(c.db.Model(&outbox.HistoryModel{}).Where("status = ?", outbox.StatusSuccess).Count(&n).Error)
	if want := int64(9); n != want { // of each kind: ok, ok, and the second attempt
		t.Errorf("%d succeeded, want %d", n, want)
	}
}

func conformTwo(_ *testing.T, c *conformance) {
	c.must(c.db.Transaction(func(tx *gorm.DB) error {
		batch := make([]outbox.NewTask, 300)
		for i := range batch {
			batch[i].Func = []string{"plain.ok", "plain.ok", "again.ok", "tx.ok"}[i%4]
		}
		tasks, err := outbox.CreateBatch(tx, batch...)
		for i, task := range tasks {
			kind := []oracle.Kind{oracle.Ordinary, oracle.Ordinary, oracle.Idempotent, oracle.Transactional}[i%4]
			c.created = append(c.created, oracle.Created(task, kind, oracle.Committed))
		}
		return err
	}))
	one, two := c.start(c.plugin(false)), c.start(c.plugin(false))
	c.eventually("all tasks end", func() bool { return c.left() == 0 })
	one()
	two()
	c.verdict()
}

// conformFence lets a handler continue after its process was expired, while another process rescues
// the task.
func conformFence(t *testing.T, c *conformance) {
	begun, release := make(chan struct{}, 2), make(chan struct{})
	zombie := outbox.New(outbox.Options{
		Logger: slog.New(slog.DiscardHandler), Scan: "@every 50ms", Heartbeat: time.Minute, Hooks: []outbox.Hooks{&lostClaims{n: &c.lost}},
		Concurrency: 2, // no slot for a task that it might claim again after it has noticed
	})
	hang := func(ctx context.Context) error {
		err := c.o.Ran(ctx)
		begun <- struct{}{}
		<-release
		return err
	}
	zombie.Handle("plain.ok", hang)
	zombie.Handle("again.ok", hang, outbox.Idempotent())
	plain, again := c.create(c.db, "plain", "ok", oracle.Committed), c.create(c.db, "again", "ok", oracle.Committed)
	stopZombie := c.start(zombie)
	for range 2 {
		select {
		case <-begun:
		case <-time.After(30 * time.Second):
			close(release)
			t.Fatal("testutil: conformance: the handlers did not start within 30 s")
		}
	}
	released := false
	defer func() {
		if !released {
			close(release)
		}
	}()
	c.must(c.db.Where("1 = 1").Delete(&outbox.ProcessModel{}).Error)
	stop := c.start(c.plugin(false))
	c.eventually("the tasks are taken over", func() bool { return c.left() == 0 })
	released = true
	close(release)
	c.eventually("the late outcomes are refused", func() bool { return c.lost.Load() == 2 })
	stop()
	stopZombie()
	c.verdict()
	if p := c.past(plain.ID); p.Reason != outbox.ReasonInterrupted {
		t.Errorf("the ordinary task ended as %s %s, want interrupted", p.Status, p.Reason)
	}
	if p := c.past(again.ID); p.Status != outbox.StatusSuccess || p.Attempt != 2 {
		t.Errorf("the idempotent task ended as %s, attempt %d; want success of the second", p.Status, p.Attempt)
	}
}

func conformChanges(t *testing.T, c *conformance) {
	gone := c.create(c.db, "plain", "ok", oracle.Committed, outbox.StartAfter(time.Hour))
	soon := c.create(c.db, "plain", "error", oracle.Committed, outbox.StartAfter(time.Hour), outbox.Key("a key's ✓"))
	c.created[len(c.created)-1].NotBefore = time.Time{}
	if _, err := outbox.Create(c.db, "plain.ok", nil, outbox.Key("a key's ✓")); !errors.Is(err, outbox.ErrDuplicateKey) {
		t.Errorf("the second task of a key: %v", err)
	}
	c.must(outbox.Cancel(c.db, gone.ID))
	c.must(outbox.Reschedule(c.db, soon.ID, time.Now()))
	c.drained()
	if p := c.past(gone.ID); p.Status != outbox.StatusCancelled {
		t.Errorf("cancelled, it ended as %s", p.Status)
	}
	again, err := outbox.Rerun(c.db, soon.ID)
	c.must(err)
	c.created = append(c.created, oracle.Created(again, oracle.Ordinary, oracle.Committed))
	if _, err := outbox.Rerun(c.db, soon.ID); !errors.Is(err, outbox.ErrConflict) {
		t.Errorf("re-run twice: %v", err)
	}
	c.drained()
}

func conformValues(t *testing.T, c *conformance) {
	args := outbox.Args{"text": "'\"\\%_? ✓ 😀 \u2028\t\r\n$1 :name", "n": json.Number("9007199254740993"), "": map[string]any{"é": nil}}
	at := time.Now().Add(time.Hour).Round(time.Microsecond)
	p := c.plugin(true)
	got := make(chan outbox.Args, 1)
	p.Handle("values", func(ctx context.Context, a outbox.Args) (outbox.Args, error) { got <- a; return a, c.o.Ran(ctx) })
	task, err := outbox.Create(c.db, "values", args, outbox.StartAt(at))
	c.must(err)
	row, _, err := outbox.Lookup(c.db, task.ID)
	c.must(err)
	var read outbox.TaskModel
	c.must(c.db.Take(&read, "id = ?", task.ID).Error)
	if !row.RunAt.Equal(at) || !read.RunAt.Equal(at) {
		t.Errorf("due %v, by GORM %v; want %v", row.RunAt, read.RunAt, at)
	}
	c.must(outbox.Reschedule(c.db, task.ID, time.Now()))
	c.created = append(c.created, oracle.Expect{Task: task.ID, Kind: oracle.Ordinary, Fate: oracle.Committed, MaxAttempts: 1})
	stop := c.start(p)
	c.eventually("it ends", func() bool { return c.left() == 0 })
	stop()
	c.verdict()
	want, _ := json.Marshal(args)
	for what, v := range map[string]any{"the handler got": <-got, "the result is": json.RawMessage(c.past(task.ID).Result)} {
		if have, err := json.Marshal(v); string(have) != string(want) || err != nil {
			t.Errorf("%s %s, want %s (%v)", what, have, want, err)
		}
	}
}

func conformParked(_ *testing.T, c *conformance) {
	c.create(c.db, "tx", "ok", oracle.Committed)
	other := outbox.New(outbox.Options{Logger: slog.New(slog.DiscardHandler), Scan: "@every 50ms", Heartbeat: time.Second})
	other.Handle("another", func(context.Context) error { return nil })
	stop := c.start(other)
	c.eventually("it is parked", func() bool {
		var n int64
		c.must(c.db.Model(&outbox.TaskModel{}).Where("state = ?", outbox.StateParked).Count(&n).Error)
		return n == 1
	})
	stop()
	c.drained()
}

func conformTerminated(t *testing.T, c *conformance) {
	suicide := map[string]string{
		"postgres": "SELECT pg_terminate_backend(pg_backend_pid())",
		"mysql":    "KILL CONNECTION_ID()",
	}[c.db.Dialector.Name()]
	if suicide == "" {
		t.Skip("SQLite is no server: what could be terminated is the process itself")
	}
	p := c.plugin(true)
	p.Handle("tx.cut", func(ctx context.Context, tx *gorm.DB) error {
		if err := errors.Join(c.o.Ran(ctx), c.o.Did(ctx, tx)); err != nil {
			return err
		}
		if task, _ := outbox.TaskFrom(ctx); task.Attempt == 1 {
			// MySQL may return an error that says that the query was interrupted.
			_ = tx.Exec(suicide).Error
			return tx.Exec("SELECT 1").Error
		}
		return nil
	})
	task := c.create(c.db, "tx", "cut", oracle.Committed)
	stop := c.start(p)
	c.eventually("it ends", func() bool { return c.left() == 0 })
	stop()
	c.verdict()
	if past := c.past(task.ID); past.Status != outbox.StatusSuccess || past.Crashes != 1 {
		t.Errorf("it ended as %s with %d crashes, want success after one", past.Status, past.Crashes)
	}
}
