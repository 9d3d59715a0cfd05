package scenarios_test

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

// processLog counts what a dispatcher logs, by message and step, at Info and above.
type processLog struct {
	slog.Handler
	mu    sync.Mutex
	lines map[string]int
	story strings.Builder // of the same lines, with times and errors
}

func (l *processLog) Enabled(context.Context, slog.Level) bool { return true }

func (l *processLog) Handle(_ context.Context, r slog.Record) error {
	line := r.Message
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "step" {
			line += " " + a.Value.String()
		}
		return true
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	if r.Level >= slog.LevelInfo {
		l.lines[line]++
		fmt.Fprint(&l.story, "\n", r.Time.Format("05.000"), " ", r.Message)
		r.Attrs(func(a slog.Attr) bool { fmt.Fprint(&l.story, " ", a); return true })
	}
	return nil
}

func (l *processLog) seen() map[string]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.lines)
}

const (
	logFails  = "outbox: database error, retrying "
	logWorks  = "outbox: recovered "
	logLapsed = "outbox: lease expired without a heartbeat, cancelling handlers"
)

func TestOutageLongerThanTheLimit(t *testing.T) {
	t.Parallel()
	eachServer(t, func(t *testing.T, server server) {
		t.Parallel()
		db := processDB(t, server.dsn)
		started, release := make(chan string, 10), make(chan struct{})
		var logs [2]*processLog
		var plugins [2]*outbox.Plugin
		for i := range plugins {
			logs[i] = &processLog{Handler: slog.DiscardHandler, lines: map[string]int{}}
			opts := dbtest.ShortHeartbeats()
			opts.Logger = slog.New(logs[i])
			opts.Queues = []string{"default", fmt.Sprint("only", i)}
			at := db
			if i > 0 {
				at = processDB(t, server.dsn)
			}
			plugins[i] = dbtest.Install(t, at, opts, func(p *outbox.Plugin) {
				p.Handle("deaf", func(ctx context.Context) error {
					task, _ := outbox.TaskFrom(ctx)
					started <- task.ID
					<-release
					return nil
				})
				p.Handle("obedient", func(ctx context.Context) error {
					if task, _ := outbox.TaskFrom(ctx); task.Attempt == 1 {
						started <- task.ID
						<-ctx.Done()
					}
					return ctx.Err()
				}, outbox.Idempotent())
				p.Handle("quick", func(context.Context) error { return nil })
			})
			dbtest.Start(t, plugins[i])
		}
		rows := func() (m []outbox.ProcessModel) {
			if err := db.Order("id").Find(&m).Error; err != nil {
				t.Fatal(err)
			}
			return m
		}
		dbtest.Eventually(t, "both run", func() bool { return len(rows()) == 2 })
		before := rows()
		var deaf, obedient []string
		for i := range plugins {
			deaf = append(deaf, dbtest.Create(t, db, "deaf", nil, outbox.Queue(fmt.Sprint("only", i))).ID)
			obedient = append(obedient, dbtest.Create(t, db, "obedient", nil, outbox.Queue(fmt.Sprint("only", i))).ID)
		}
		for range 4 {
			dbtest.Receive(t, started)
		}
		var later []string
		for i := range 100 {
			later = append(later, dbtest.Create(t, db, "quick", nil, outbox.StartAfter(time.Duration(i)*40*time.Millisecond)).ID)
		}
		var earlier, down [2]map[string]int // a busy machine may have failed a statement before
		for i, l := range logs {
			earlier[i] = l.seen()
		}
		stopping := time.Now()
		server.stop()
		stopped := time.Now()
		for i, l := range logs {
			down[i] = l.seen()
		}
		for _, l := range logs {
			dbtest.Eventually(t, "the lapse is logged", func() bool { return l.seen()[logLapsed] == 1 })
		}
		<-time.After(2 * dbtest.ShortLimit) // which is what the test is about
		for i, l := range logs {
			for line, n := range l.seen() {
				if strings.HasPrefix(line, logWorks) && n != down[i][line] {
					t.Errorf("process %d, during the outage: %d × %q", i, n, line)
				}
			}
		}
		starting := time.Now()
		server.start()
		defer func() {
			if t.Failed() {
				const f = "05.000"
				t.Logf("the server stopped from %s to %s, and started from %s on", stopping.Format(f), stopped.Format(f), starting.Format(f))
				for i, l := range logs {
					l.mu.Lock()
					t.Logf("process %d: %s", i, &l.story)
					l.mu.Unlock()
				}
			}
		}()
		for _, id := range append(obedient, later...) {
			if h := dbtest.Ended(t, db, id); h.Status != outbox.StatusSuccess || h.Crashes != 0 || h.Attempt-h.Uncounted != 1 {
				t.Errorf("%+v", h)
			}
		}
		close(release)
		for _, id := range deaf {
			if h := dbtest.Ended(t, db, id); h.Status != outbox.StatusSuccess || h.Attempt != 1 {
				t.Errorf("a task of a live process: %+v", h)
			}
		}
		for i, l := range logs {
			seen := l.seen()
			for line, n := range seen {
				switch {
				case strings.HasPrefix(line, logFails):
					if step := line[len(logFails):]; n > earlier[i][line]+1 || seen[logWorks+step] != n {
						t.Errorf("process %d: %d × %q, %d before the outage, %d × works again", i, n, line, earlier[i][line], seen[logWorks+step])
					}
				case line == logLapsed, line == "outbox: started":
					if n != 1 {
						t.Errorf("process %d: %d × %q", i, n, line)
					}
				case strings.HasPrefix(line, logWorks):
				default:
					t.Errorf("process %d: %d × %q", i, n, line)
				}
			}
			if seen[logFails+"heartbeat"] != earlier[i][logFails+"heartbeat"]+1 {
				t.Errorf("process %d: its outage was not logged: %v", i, seen)
			}
		}
		after := rows()
		if len(after) != 2 || after[0].ID != before[0].ID || after[1].ID != before[1].ID {
			t.Fatalf("process rows %+v, were %+v", after, before)
		}
		dbtest.Eventually(t, "both beat", func() bool {
			now := rows()
			return now[0].Beats > after[0].Beats && now[1].Beats > after[1].Beats
		})
		if n := dbtest.Count(t, db, &outbox.TaskModel{}); n != 0 {
			t.Errorf("%d tasks are left", n)
		}
	})
}

func TestSessionsTerminatedUnderLoad(t *testing.T) {
	t.Parallel()
	const ordinary, transactional, kills = 500, 200, 20
	eachServer(t, func(t *testing.T, server server) {
		t.Parallel()
		db := processDB(t, server.dsn)
		opts := dbtest.ShortHeartbeats()
		opts.Concurrency = 20
		p := dbtest.Install(t, db, opts, func(p *outbox.Plugin) {
			write := func(ctx context.Context, tx *gorm.DB) error {
				task, _ := outbox.TaskFrom(ctx)
				return tx.Create(&mark{Task: task.ID}).Error
			}
			p.Handle("ordinary", func(ctx context.Context) error { return write(ctx, db.WithContext(ctx)) })
			p.Handle("transactional", write)
		})
		var batch []outbox.NewTask
		for i := range ordinary + transactional {
			task := outbox.NewTask{Func: "ordinary"}
			if i%7 < 2 {
				// An error that the handler returns counts, also when it comes from a connection
				// that is gone.
				task.Func, task.Options = "transactional", []outbox.CreateOption{outbox.MaxAttempts(3 * kills)}
			}
			batch = append(batch, task)
		}
		tasks, err := outbox.CreateBatch(db, batch...)
		if err != nil {
			t.Fatal(err)
		}
		dbtest.Start(t, p)
		// This session is spared.
		pool, err := db.DB()
		if err != nil {
			t.Fatal(err)
		}
		own, err := pool.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer own.Close()
		number := func(query string) (n int) {
			if err := own.QueryRowContext(t.Context(), query).Scan(&n); err != nil {
				t.Fatal(err)
			}
			return n
		}
		killed := 0
		for i := range kills {
			dbtest.Eventually(t, "some have ended", func() bool {
				return number("SELECT count(*) FROM outbox_history") >= i*(ordinary+transactional)*9/10/kills
			})
			killed += server.terminate(t, own)
		}
		if killed < kills {
			t.Errorf("%d sessions were terminated in %d rounds: nothing was tested", killed, kills)
		}
		dbtest.Eventually(t, "all have ended", func() bool { return number("SELECT count(*) FROM outbox_tasks") == 0 })
		effects := map[string]int{}
		rows, err := own.QueryContext(t.Context(), "SELECT task, count(*) FROM marks GROUP BY task")
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		for rows.Next() {
			var id sql.NullString
			var n int
			if err := rows.Scan(&id, &n); err != nil {
				t.Fatal(err)
			}
			effects[id.String] = n
		}
		if err := rows.Err(); err != nil {
			t.Fatal(err)
		}
		again := 0
		for _, task := range tasks {
			h := dbtest.Ended(t, db, task.ID)
			if h.Attempt > 1 {
				again++
			}
			if n := effects[task.ID]; task.Func == "transactional" {
				if n != 1 || h.Status != outbox.StatusSuccess {
					t.Errorf("%d effects of %+v", n, h)
				}
			} else if n > 1 || h.Status == outbox.StatusSuccess && n != 1 || h.Attempt-h.Uncounted != 1 {
				t.Errorf("%d effects of %+v", n, h)
			}
		}
		if n := dbtest.Count(t, db, &outbox.HistoryModel{}); n != ordinary+transactional {
			t.Errorf("%d rows of history, want %d", n, ordinary+transactional)
		}
		t.Logf("%d sessions terminated, %d tasks were claimed again", killed, again)
	})
}

// Run waits for a database that is down when it begins; RunDue says so instead.
func TestDatabaseIsDownAtTheStart(t *testing.T) {
	eachServer(t, func(t *testing.T, server server) {
		db := processDB(t, server.dsn)
		lines := &processLog{Handler: slog.DiscardHandler, lines: map[string]int{}}
		opts := dbtest.ShortHeartbeats()
		opts.Logger = slog.New(lines)
		p := dbtest.Install(t, db, opts, func(p *outbox.Plugin) { p.Handle("quick", func(context.Context) error { return nil }) })
		id := dbtest.Create(t, db, "quick", nil).ID

		server.stop()
		if n, err := p.RunDue(t.Context()); n != 0 || err == nil {
			t.Errorf("RunDue ran %d, %v, without a database", n, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- p.Run(ctx) }()
		dbtest.Eventually(t, "it is logged", func() bool { return lines.seen()[logFails+"start"] > 0 })
		cancel()
		if err := dbtest.Receive(t, done); err != nil {
			t.Errorf("Run, whose context ended while it waited: %v", err)
		}
		dbtest.Start(t, p)
		dbtest.Eventually(t, "it is logged again", func() bool { return lines.seen()[logFails+"start"] > 1 })
		server.start()
		if h := dbtest.Ended(t, db, id); h.Status != outbox.StatusSuccess || h.Attempt != 1 {
			t.Errorf("%+v", h)
		}
		if n := lines.seen()[logFails+"start"]; n != 2 {
			t.Errorf("logged %d times, want once a start", n)
		}
	})
}

// A heartbeat that waits for the only write lock does not end the handlers, however short the limit
// is: the transaction that has the lock keeps other processes from a rescue.
func TestHeartbeatThatWaitsForTheWriteLock(t *testing.T) {
	dsn := testdb.SQLiteDSN(t)
	db, other := processDB(t, dsn), processDB(t, dsn)
	running, release := make(chan context.Context, 1), make(chan struct{})
	opts := dbtest.ShortHeartbeats()
	opts.Heartbeat, opts.HeartbeatLimit = 50*time.Millisecond, 300*time.Millisecond
	p := dbtest.Install(t, db, opts, func(p *outbox.Plugin) {
		p.Handle("held", func(ctx context.Context) error {
			running <- ctx
			<-release
			return ctx.Err()
		})
	})
	id := dbtest.Create(t, db, "held", nil).ID
	dbtest.Start(t, p)
	ctx := dbtest.Receive(t, running)
	lock := other.Begin() // immediate
	select {
	case <-ctx.Done():
		t.Errorf("the handler's context ended after less than a statement's limit: %v", context.Cause(ctx))
	case <-time.After(700 * time.Millisecond): // the limit is over twice; a statement's is a second
	}
	lock.Rollback()
	close(release)
	if h := dbtest.Ended(t, db, id); h.Status != outbox.StatusSuccess || h.Attempt != 1 {
		t.Errorf("%+v", h)
	}
}
