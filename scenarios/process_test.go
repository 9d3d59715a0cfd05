package scenarios_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
)

// processEnv makes the test binary a dispatcher that its parent steers: it says on its standard
// output which runs start and finish, and lets them go when its standard input says so. Signs
// through the database would have to wait for SQLite's write lock, which a transactional handler
// holds.
const processEnv = "OUTBOX_TEST_PROCESS"

// heldHandlers say that they have started and return their process's id when they are let go,
// whatever their context says.
func heldHandlers(p *outbox.Plugin, started func(id string), release <-chan struct{}) {
	held := func(ctx context.Context) (int, error) {
		task, _ := outbox.TaskFrom(ctx)
		started(task.ID)
		<-release
		return os.Getpid(), nil
	}
	p.Handle("ordinary", held)
	p.Handle("idempotent", held, outbox.Idempotent())
	p.Handle("transactional", func(ctx context.Context, tx *gorm.DB) (int, error) {
		task, _ := outbox.TaskFrom(ctx)
		if err := tx.Create(&mark{task.ID, strconv.Itoa(os.Getpid())}).Error; err != nil {
			return 0, err
		}
		return held(ctx)
	})
	p.Handle("quick", func(context.Context) (int, error) { return os.Getpid(), nil })
}

func processMain(dsn string) int {
	db, err := dbtest.OpenDSN(dsn)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	release := make(chan struct{})
	go func() {
		if line, err := bufio.NewReader(os.Stdin).ReadString('\n'); err == nil && line == "go\n" {
			close(release)
		}
	}()
	p := outbox.New(dbtest.ShortHeartbeats(finishHook{told: func(task *outbox.TaskModel, f outbox.Outcome) {
		how := string(f.Status)
		if errors.Is(f.Err, outbox.ErrClaimLost) {
			how = "lost"
		}
		fmt.Println("finished", task.ID, how)
	}}))
	heldHandlers(p, func(id string) { fmt.Println("started", id) }, release)
	die := func() error { return syscall.Kill(os.Getpid(), syscall.SIGKILL) }
	p.Handle("poison", func(context.Context) error { return die() }, outbox.Idempotent())
	p.Handle("poison.tx", func(context.Context, *gorm.DB) error { return die() })
	if err = db.Use(p); err == nil {
		err = p.Run(context.Background())
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// process is a child dispatcher.
type process struct {
	*exec.Cmd
	input io.Writer
	lines chan string
}

func startProcess(t *testing.T, dsn string) *process {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), processEnv+"="+dsn)
	cmd.Stderr = os.Stderr
	input, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	output, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &process{cmd, input, make(chan string, 1000)}
	go func() {
		for s := bufio.NewScanner(output); s.Scan(); {
			c.lines <- s.Text()
		}
		close(c.lines)
	}()
	t.Cleanup(c.kill)
	return c
}

// kill ends the child at once, also when it is stopped.
func (c *process) kill() {
	if c.ProcessState == nil {
		_ = c.Process.Kill()
		for range c.lines { // Wait closes the pipe, which must have been read
		}
		_ = c.Wait()
	}
}

// says waits until the child has said all of these, in any order.
func (c *process) says(t *testing.T, want ...string) {
	t.Helper()
	missing := map[string]bool{}
	for _, w := range want {
		missing[w] = true
	}
	for len(missing) > 0 {
		line := dbtest.Receive(t, c.lines)
		if line == "" {
			t.Fatalf("the child has ended, without having said %v", missing)
		}
		if verb, ok := strings.CutPrefix(line, "finished "); ok && !missing[line] {
			t.Fatalf("finished %s; want %v", verb, missing)
		}
		delete(missing, line)
	}
}

func (c *process) signal(t *testing.T, s os.Signal) {
	t.Helper()
	if err := c.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// freeze returns when every thread of it stands still; until then one may still take a lock.
func (c *process) freeze(t *testing.T) {
	t.Helper()
	c.signal(t, syscall.SIGSTOP)
	if runtime.GOOS != "linux" {
		return
	}
	dbtest.Eventually(t, "it stands still", func() bool {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", c.Process.Pid))
		return err == nil && !slices.ContainsFunc(threads, func(path string) bool {
			stat, err := os.ReadFile(path)
			return err == nil && !strings.Contains(string(stat), ") T ")
		})
	})
}

func (c *process) letGo(t *testing.T) {
	t.Helper()
	if _, err := io.WriteString(c.input, "go\n"); err != nil {
		t.Fatal(err)
	}
}

// row is the child's process row.
func (c *process) row(t *testing.T, db *gorm.DB) (m outbox.ProcessModel) {
	t.Helper()
	dbtest.Eventually(t, "the process has a row", func() bool {
		return db.Where("pid = ?", c.Process.Pid).Limit(1).Find(&m).RowsAffected == 1
	})
	return m
}

// processDB opens a database that children can open too, with the tables of some models.
func processDB(t *testing.T, dsn string, models ...any) *gorm.DB {
	t.Helper()
	db, err := dbtest.OpenDSN(dsn)
	if err != nil {
		t.Fatal(err)
	}
	pool, err := db.DB()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pool.Close() })
	if err := db.AutoMigrate(append(models, &mark{})...); err != nil {
		t.Fatal(err)
	}
	return db
}

// eachDSN runs a test on each database and for each kind of handler.
func eachDSN(t *testing.T, kinds []string, test func(t *testing.T, dsn, kind string)) {
	t.Helper()
	for _, d := range dbtest.Databases {
		for _, kind := range kinds {
			t.Run(d.Name+"/"+kind, func(t *testing.T) {
				t.Parallel() // they mostly wait for heartbeats
				test(t, d.DSN(t), kind)
			})
		}
	}
}

func TestKilledProcessIsRescuedInTime(t *testing.T) {
	released := make(chan struct{})
	close(released)
	eachDSN(t, []string{"ordinary", "idempotent", "transactional"}, func(t *testing.T, dsn, kind string) {
		db := processDB(t, dsn)
		p := dbtest.Install(t, db, dbtest.ShortHeartbeats(), func(p *outbox.Plugin) { heldHandlers(p, func(string) {}, released) })
		ids := []string{dbtest.Create(t, db, kind, nil).ID}
		if kind == "ordinary" {
			ids = append(ids, dbtest.Create(t, db, kind, nil, outbox.MaxAttempts(2)).ID)
		}
		victim := startProcess(t, dsn)
		var begun []string
		for _, id := range ids {
			begun = append(begun, "started "+id)
		}
		victim.says(t, begun...)
		dbtest.Start(t, p)
		if kind != "transactional" || !strings.HasPrefix(dsn, "file:") { // its own row waits for the victim's transaction
			dbtest.Eventually(t, "the survivor watches", func() bool { return dbtest.Count(t, db, &outbox.ProcessModel{}) == 2 })
		}
		killed := time.Now()
		victim.kill()
		past := make([]*outbox.HistoryModel, len(ids))
		for i, id := range ids {
			past[i] = dbtest.Ended(t, db, id)
		}
		if took := time.Since(killed); took > 3*dbtest.ShortLimit {
			t.Errorf("the verdict took %v; want two limits of %v, and one is allowed for a slow machine", took, dbtest.ShortLimit)
		}
		if kind == "ordinary" {
			if h := past[0]; h.Status != outbox.StatusError || h.Reason != outbox.ReasonInterrupted || h.Attempt != 1 || h.Error == nil || !strings.Contains(*h.Error, "unknown") {
				t.Errorf("the only attempt: %+v", h)
			}
			h := past[1]
			if h.Status != outbox.StatusSuccess || h.Attempt != 2 || h.Uncounted != 0 || h.Crashes != 0 {
				t.Errorf("with an attempt left: %+v", h)
			}
			if len(h.Errors) != 1 || h.Errors[0].Attempt != 1 || h.Errors[0].Reason != outbox.ReasonInterrupted || h.Errors[0].At.IsZero() {
				t.Errorf("with an attempt left: its errors are %+v", h.Errors)
			}
			return
		}
		if h := past[0]; h.Status != outbox.StatusSuccess || h.Attempt != 2 || h.Uncounted != 1 || h.Crashes != 1 || len(h.Errors) != 1 {
			t.Errorf("repeatable: %+v", h)
		}
		if n := marksOf(t, db, ids[0]); kind == "transactional" && n != 1 {
			t.Errorf("%d effects, want 1", n)
		}
	})
}

func TestPoisonIsGivenUp(t *testing.T) {
	eachDSN(t, []string{"poison", "poison.tx"}, func(t *testing.T, dsn, kind string) {
		db := processDB(t, dsn)
		opts := dbtest.ShortHeartbeats()
		// It survives and judges, though it does not know the function.
		opts.ProducerOnly, opts.Concurrency = true, 2
		p := dbtest.Install(t, db, opts, func(p *outbox.Plugin) { p.Handle("quick", func(context.Context) error { return nil }) })
		poison := dbtest.Create(t, db, kind, nil)
		var others []string
		some := func() {
			for range 10 {
				others = append(others, dbtest.Create(t, db, "quick", nil, outbox.MaxAttempts(9)).ID)
			}
		}
		some()
		dbtest.Start(t, p)
		for range 3 {
			c := startProcess(t, dsn)
			for line := range c.lines {
				_ = line // until it dies
			}
			some()
			_ = c.Wait()
			if status, ok := c.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
				t.Fatalf("the child ended otherwise: %v", c.ProcessState)
			}
		}
		h := dbtest.Ended(t, db, poison.ID)
		if h.Status != outbox.StatusError || h.Reason != outbox.ReasonInterrupted || h.Crashes != 3 || h.Attempt != 3 || len(h.Errors) != 2 {
			t.Errorf("%+v", h)
		}
		for _, id := range others {
			if h := dbtest.Ended(t, db, id); h.Status != outbox.StatusSuccess {
				t.Errorf("another task: %+v", h)
			}
		}
	})
}

func TestStoppedProcessCannotWrite(t *testing.T) {
	eachDSN(t, []string{"ordinary", "transactional"}, func(t *testing.T, dsn, kind string) {
		db := processDB(t, dsn)
		started, release := make(chan string, 10), make(chan struct{})
		p := dbtest.Install(t, db, dbtest.ShortHeartbeats(), func(p *outbox.Plugin) {
			heldHandlers(p, func(id string) { started <- id }, release)
		})
		task := dbtest.Create(t, db, kind, nil, outbox.MaxAttempts(2))
		zombie := startProcess(t, dsn)
		before := zombie.row(t, db)
		zombie.says(t, "started "+task.ID)
		freeze := func(*gorm.DB) error { zombie.freeze(t); return nil }
		if kind == "transactional" && strings.HasPrefix(dsn, "file:") {
			_ = freeze(nil)
			// The zombie's transaction keeps everybody from writing, so nobody can take its task
			// over. When it wakes up it has to give way by itself.
			<-time.After(dbtest.ShortLimit)
			zombie.signal(t, syscall.SIGCONT)
			zombie.letGo(t)
			h := dbtest.Ended(t, db, task.ID)
			if n := marksOf(t, db, task.ID); n != 1 || h.Status != outbox.StatusSuccess {
				t.Errorf("%d effects, %+v", n, h)
			}
			return
		}
		// In a transaction of our own, so that it is not stopped while it has SQLite's write lock
		// for a heartbeat.
		if err := db.Transaction(freeze); err != nil {
			t.Fatal(err)
		}
		stop := dbtest.Start(t, p)
		if got := dbtest.Receive(t, started); got != task.ID {
			t.Fatalf("%s was taken over, want %s", got, task.ID)
		}
		// The second run is under way: only the fence tells the two apart now.
		zombie.signal(t, syscall.SIGCONT)
		zombie.letGo(t)
		zombie.says(t, "finished "+task.ID+" lost")
		if now, past, err := outbox.Lookup(db, task.ID); err != nil || past != nil || now.State != outbox.StateRunning || now.Attempt != 2 {
			t.Fatalf("after the late finish: %+v, %+v, %v", now, past, err)
		}
		close(release)
		h := dbtest.Ended(t, db, task.ID)
		if h.Status != outbox.StatusSuccess || h.Attempt != 2 || h.Result.String() != strconv.Itoa(os.Getpid()) {
			t.Errorf("%+v, result %s; want this process's, %d", h, h.Result, os.Getpid())
		}
		if n := marksOf(t, db, task.ID); kind == "transactional" && n != 1 {
			t.Errorf("%d effects, want 1", n)
		}
		stop()
		var after outbox.ProcessModel
		dbtest.Eventually(t, "the zombie has a new row", func() bool { after = zombie.row(t, db); return after.ID != before.ID })
		next := dbtest.Ended(t, db, dbtest.Create(t, db, "quick", nil).ID)
		if next.ProcessID == nil || *next.ProcessID != after.ID || next.Result.String() != strconv.Itoa(zombie.Process.Pid) {
			t.Errorf("ran in process %v with result %s, want the new incarnation %s", next.ProcessID, next.Result, after.ID)
		}
		if again := dbtest.Ended(t, db, task.ID); again.Version != h.Version || again.Result.String() != h.Result.String() || !again.FinishedAt.Equal(h.FinishedAt) {
			t.Errorf("history has changed: %+v, was %+v", again, h)
		}
	})
}

// As when a container is frozen, or a machine suspended: nobody could beat, so nobody's silence
// proves anything.
func TestFrozenTogetherNobodyIsDeclaredDead(t *testing.T) {
	eachDSN(t, []string{"ordinary"}, func(t *testing.T, dsn, kind string) {
		db := processDB(t, dsn)
		dbtest.Install(t, db, dbtest.ShortHeartbeats(), func(p *outbox.Plugin) { heldHandlers(p, func(string) {}, nil) })
		task := dbtest.Create(t, db, kind, nil)
		owner := startProcess(t, dsn)
		owner.says(t, "started "+task.ID)
		observer := startProcess(t, dsn)
		row := observer.row(t, db)
		beaten := func() bool { return observer.row(t, db).Beats > row.Beats+3 }
		dbtest.Eventually(t, "the observer has seen the owner", beaten)
		owner.freeze(t)
		observer.freeze(t)
		<-time.After(dbtest.ShortLimit + 500*time.Millisecond)
		row = observer.row(t, db)
		observer.signal(t, syscall.SIGCONT)
		dbtest.Eventually(t, "the observer looks again", beaten)
		owner.signal(t, syscall.SIGCONT)
		owner.letGo(t)
		owner.says(t, "finished "+task.ID+" "+string(outbox.StatusSuccess))
		if h := dbtest.Ended(t, db, task.ID); h.Status != outbox.StatusSuccess || h.Attempt != 1 {
			t.Errorf("%+v", h)
		}
	})
}

// mark is what a handler writes in its transaction; no unique key hides a second one.
type mark struct {
	Task string
	What string
}

func marksOf(t *testing.T, db *gorm.DB, task string) int64 {
	t.Helper()
	return dbtest.Count(t, db.Where("task = ?", task), &mark{})
}
