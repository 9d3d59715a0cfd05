package scenarios_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
)

const dispatcherEnv = "OUTBOX_TEST_DISPATCHER"

// run is written by every run, outside any transaction of the library; no unique key hides a second
// one.
type runRow struct {
	Task string
	PID  int
}

func crashOptions() outbox.Options {
	return outbox.Options{
		Scan: "@every 20ms", Heartbeat: 100 * time.Millisecond, HeartbeatLimit: 3 * time.Second, Concurrency: 8,
		Backoff: func(int) time.Duration { return time.Millisecond }, Logger: slog.New(slog.DiscardHandler),
	}
}

// crashHandlers are the same in the child, where "hang" handlers never return, and in the parent,
// where they do.
func crashHandlers(p *outbox.Plugin, db *gorm.DB, hang bool) {
	mark := func(ctx context.Context, db *gorm.DB) error {
		task, _ := outbox.TaskFrom(ctx)
		err := db.Create(&runRow{task.ID, os.Getpid()}).Error
		if hang && err == nil {
			select {}
		}
		return err
	}
	p.Handle("ordinary", func(ctx context.Context) error { return mark(ctx, db) })
	p.Handle("idempotent", func(ctx context.Context) error { return mark(ctx, db) }, outbox.Idempotent())
	p.Handle("transactional", mark)
}

func dispatcherMain(dsn string) int {
	db, err := dbtest.OpenDSN(dsn)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if pool, err := db.DB(); err == nil {
		pool.SetMaxIdleConns(20) // two by default: most of the time would go into new connections
	}
	opts := crashOptions()
	path := os.Getenv(dispatcherEnv + "_RUNS")
	if path != "" {
		opts.HeartbeatLimit = 30 * time.Second // nobody is to be declared dead
	}
	p := outbox.New(opts)
	crashHandlers(p, db, os.Getenv(dispatcherEnv+"_HANG") != "")
	if path != "" {
		runs, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer runs.Close()
		p.Handle("count", func(ctx context.Context) error {
			task, _ := outbox.TaskFrom(ctx)
			_, err := fmt.Fprintln(runs, task.ID)
			return err
		})
	}
	if err := db.Use(p); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := p.Run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// spawn starts a child dispatcher. It is killed when the test ends, if it is still there.
func spawnDispatcher(t *testing.T, dsn string, env ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(append(os.Environ(), dispatcherEnv+"="+dsn), env...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	return cmd
}

// crashDB opens a database that children can open too.
func crashDB(t *testing.T, dsn string) (*gorm.DB, *outbox.Plugin) {
	t.Helper()
	db := processDB(t, dsn, &runRow{})
	return db, dbtest.Install(t, db, crashOptions(), func(p *outbox.Plugin) { crashHandlers(p, db, false) })
}

func TestKilledProcess(t *testing.T) {
	for _, d := range dbtest.Databases {
		t.Run(d.Name, func(t *testing.T) {
			dsn := d.DSN(t)
			db, p := crashDB(t, dsn)
			once := dbtest.Create(t, db, "ordinary", nil)
			twice := dbtest.Create(t, db, "ordinary", nil, outbox.MaxAttempts(2))
			again := dbtest.Create(t, db, "idempotent", nil)
			tx := dbtest.Create(t, db, "transactional", nil)
			if d.Name == "sqlite" {
				// Its transaction would keep the others from writing.
				if err := outbox.Reschedule(db, tx.ID, time.Now().Add(time.Hour)); err != nil {
					t.Fatal(err)
				}
			}
			victim := spawnDispatcher(t, dsn, dispatcherEnv+"_HANG=yes")
			dbtest.Eventually(t, "the handlers hang", func() bool { return dbtest.Count(t, db, &runRow{}) == 3 })
			if d.Name == "sqlite" {
				if err := outbox.Reschedule(db, tx.ID, time.Now()); err != nil {
					t.Fatal(err)
				}
			}
			dbtest.Eventually(t, "the transactional one runs", func() bool {
				task, _, err := outbox.Lookup(db, tx.ID)
				return err == nil && task.State == outbox.StateRunning
			})
			if err := victim.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = victim.Wait()
			dbtest.Start(t, p)
			for _, tt := range []struct {
				name, id         string
				status           outbox.Status
				reason           outbox.Reason
				attempt, crashes int
				runs             int64
			}{
				{"its last attempt ends as interrupted", once.ID, outbox.StatusError, outbox.ReasonInterrupted, 1, 0, 1},
				{"with an attempt left runs again", twice.ID, outbox.StatusSuccess, outbox.ReasonNone, 2, 0, 2},
				{"idempotent runs again, uncounted", again.ID, outbox.StatusSuccess, outbox.ReasonNone, 2, 1, 2},
				{"transactional runs again, one effect", tx.ID, outbox.StatusSuccess, outbox.ReasonNone, 2, 1, 1},
			} {
				t.Run(tt.name, func(t *testing.T) {
					past := dbtest.Ended(t, db, tt.id)
					var runs int64
					if err := db.Model(&runRow{}).Where("task = ?", tt.id).Count(&runs).Error; err != nil {
						t.Fatal(err)
					}
					if past.Status != tt.status || past.Reason != tt.reason || past.Attempt != tt.attempt || past.Crashes != tt.crashes || runs != tt.runs {
						t.Errorf("%s %s, attempt %d, uncounted %d, crashes %d, %d runs; want %+v", past.Status, past.Reason, past.Attempt, past.Uncounted, past.Crashes, runs, tt)
					}
				})
			}
		})
	}
}

func TestTwoProcessesRunEachTaskOnce(t *testing.T) {
	for _, d := range dbtest.Databases {
		t.Run(d.Name, func(t *testing.T) {
			t.Parallel()
			const tasks = 10_000
			dsn := d.DSN(t)
			db, p := crashDB(t, dsn)
			p.Handle("count", func(context.Context) error { return nil })
			batch := make([]outbox.NewTask, tasks)
			for i := range batch {
				batch[i].Func = "count"
			}
			if _, err := outbox.CreateBatch(db, batch...); err != nil {
				t.Fatal(err)
			}
			before := deadlocks(t, db)
			runs := filepath.Join(t.TempDir(), "runs") // not in the database, where they would wait for its locks
			children := []*exec.Cmd{spawnDispatcher(t, dsn, dispatcherEnv+"_RUNS="+runs), spawnDispatcher(t, dsn, dispatcherEnv+"_RUNS="+runs)}
			limit := time.Now().Add(5 * time.Minute)
			tick := time.NewTicker(50 * time.Millisecond)
			defer tick.Stop()
			for dbtest.Count(t, db, &outbox.HistoryModel{}) < tasks && time.Now().Before(limit) {
				<-tick.C
			}
			for _, c := range children {
				if err := c.Process.Signal(os.Interrupt); err != nil {
					t.Fatal(err)
				}
				if err := c.Wait(); err != nil {
					t.Errorf("child: %v", err)
				}
			}
			content, err := os.ReadFile(runs)
			if err != nil {
				t.Fatal(err)
			}
			lines := strings.Fields(string(content))
			distinct := map[string]bool{}
			for _, id := range lines {
				distinct[id] = true
			}
			var ends []struct {
				Status, Reason  string
				Attempt, Number int
			}
			if err := db.Raw("SELECT status, reason, attempt - uncounted AS attempt, count(*) AS number FROM outbox_history GROUP BY 1, 2, 3").Scan(&ends).Error; err != nil {
				t.Fatal(err)
			}
			if len(lines) != tasks || len(distinct) != tasks || len(ends) != 1 || ends[0].Status != "success" || ends[0].Attempt != 1 || ends[0].Number != tasks {
				t.Errorf("%d runs of %d tasks, which ended as %v; want %d that succeeded at once", len(lines), len(distinct), ends, tasks)
			}
			if n := deadlocks(t, db) - before; n != 0 {
				t.Errorf("%d deadlocks", n)
			}
		})
	}
}

// deadlocks that the server has found so far. MySQL counts those of all databases together, so
// nothing is counted on a server that others use; nobody else of this binary uses a server while a
// test runs that is not parallel.
func deadlocks(t *testing.T, db *gorm.DB) int {
	if db.Name() == "mysql" && os.Getenv("OUTBOX_TEST_MARIADB")+os.Getenv("OUTBOX_TEST_MYSQL") != "" {
		return 0
	}
	query := map[string]string{
		"postgres": "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()",
		"mysql":    "SELECT `count` FROM information_schema.innodb_metrics WHERE name = 'lock_deadlocks'",
	}[db.Name()]
	if query == "" {
		return 0
	}
	var n int
	if err := db.Raw(query).Row().Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}
