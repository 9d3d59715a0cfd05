package scenarios_test

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
)

// deathPoints of a run are before and after each statement that matters; kill -9 comes there.
var deathPoints = []struct {
	name, statement string
	only            string // kind of handler; empty means all
}{
	{"claim", `SET state = 'running'`, ""},
	{"effect", `INSERT INTO .effects`, ""},
	{"savepoint", `^SAVEPOINT outbox_run`, "transactional"},
	{"release", `^RELEASE SAVEPOINT outbox_run`, "transactional"},
	{"move", `INSERT INTO "outbox_history"`, ""},
	{"commit of the finish", `(?s)^COMMIT.*DELETE (t )?FROM .*"outbox_tasks"`, "transactional"},
}

func init() {
	// param: queue, statement, before or after
	roles["dies at"] = func(s *self) error {
		queue, rest, _ := strings.Cut(s.param, "|")
		when, statement, _ := strings.Cut(rest, "|")
		match := regexp.MustCompile(statement)
		s.tap.set(func(_ context.Context, st step) error {
			if st.after == (when == "after") && match.MatchString(st.text) {
				die()
			}
			return nil
		})
		return s.dispatch(context.Background(), quick(patient, func(o *outbox.Options) { o.Queues = []string{queue} }), func(p *outbox.Plugin) {
			effectHandlers(p, s.db)
		})
	}
}

// effectHandlers are one of each kind; each run leaves an effect.
func effectHandlers(p *outbox.Plugin, db *gorm.DB) {
	p.Handle("ordinary", func(ctx context.Context) error { return leave(ctx, db) })
	p.Handle("idempotent", func(ctx context.Context) error { return leave(ctx, db) }, outbox.Idempotent())
	p.Handle("transactional", leave)
}

// A process dies at each point of a run. Each has a task and a queue of its own; when all are dead
// one process takes over.
func TestKilledAtEachPoint(t *testing.T) {
	each(t, func(t *testing.T, d database, dsn string) {
		db := d.open(t, dsn, nil)
		p := dbtest.Install(t, db, quick(), func(p *outbox.Plugin) { effectHandlers(p, db) })
		type death struct {
			name, kind string
			max        int
			task       *outbox.TaskModel
		}
		var deaths []*death
		var mu sync.Mutex
		var wg sync.WaitGroup
		slots := make(chan struct{}, 4)
		for _, point := range deathPoints {
			for _, when := range []string{"before", "after"} {
				for i, kind := range []string{"ordinary", "ordinary", "idempotent", "transactional"} {
					if point.only != "" && point.only != kind {
						continue
					}
					dead := &death{name: fmt.Sprintf("%s %s %s %d", kind, when, point.name, i), kind: kind, max: 1 + i%2}
					queue := fmt.Sprintf("q%d", len(deaths))
					dead.task = dbtest.Create(t, db, kind, nil, outbox.Queue(queue), outbox.MaxAttempts(dead.max))
					deaths = append(deaths, dead)
					wg.Go(func() {
						slots <- struct{}{}
						defer func() { <-slots }()
						c := spawn(t, d, dsn, "dies at", queue+"|"+when+"|"+point.statement)
						if status := c.wait(); status.Signal() != syscall.SIGKILL {
							mu.Lock()
							defer mu.Unlock()
							t.Errorf("%s: the child was not killed: %v", dead.name, c.ProcessState)
						}
					})
				}
			}
		}
		wg.Wait()
		dbtest.Start(t, p)
		for _, dead := range deaths {
			past := dbtest.Ended(t, db, dead.task.ID)
			n, runs := effects(t, db, dead.task.ID), past.Attempt-past.Uncounted
			success := past.Status == outbox.StatusSuccess
			switch {
			case runs > dead.max, !success && past.Reason != outbox.ReasonInterrupted:
				t.Errorf("%s: %+v", dead.name, past)
			case dead.kind == "transactional" && (n != 1 || !success):
				t.Errorf("%s: %d effects, %s", dead.name, n, past.Status)
			case dead.kind == "idempotent" && (n < 1 || !success):
				t.Errorf("%s: %d effects, %s", dead.name, n, past.Status)
			case dead.kind == "ordinary" && (int(n) > dead.max || success && n < 1):
				t.Errorf("%s: %d effects of at most %d runs, %s", dead.name, n, dead.max, past.Status)
			case dead.kind == "ordinary" && dead.max == 2 && !success:
				t.Errorf("%s: an attempt was left: %+v", dead.name, past)
			}
		}
		if n, m := dbtest.Count(t, db, &outbox.TaskModel{}), dbtest.Count(t, db, &outbox.HistoryModel{}); n != 0 || int(m) != len(deaths) {
			t.Errorf("%d tasks are left, %d rows of history of %d tasks", n, m, len(deaths))
		}
		t.Logf("%d deaths", len(deaths))
	})
}

func init() {
	// Its handlers have ended, but their outcomes are not written.
	roles["dies with outcomes"] = func(s *self) error {
		var written sync.WaitGroup // nobody returns before all have written: the group's transaction may lock them out
		written.Add(10)
		over := make(chan struct{}, 10)
		s.tap.set(func(_ context.Context, st step) error {
			if !st.after && strings.Contains(st.text, `INSERT INTO "outbox_history"`) {
				for range cap(over) { // the first group is one outcome or more; the others gather behind it
					<-over
				}
				die()
			}
			return nil
		})
		return s.dispatch(context.Background(), quick(patient), func(p *outbox.Plugin) {
			p.Handle("ordinary", func(ctx context.Context) error {
				defer func() { over <- struct{}{} }()
				err := leave(ctx, s.db)
				written.Done()
				written.Wait()
				return err
			})
		})
	}
	// It dies in its transaction, or just after the commit.
	roles["creates"] = func(s *self) error {
		p := outbox.New(outbox.Options{})
		effectHandlers(p, s.db)
		if err := s.db.Use(p); err != nil {
			return err
		}
		s.tap.set(func(_ context.Context, st step) error {
			if strings.HasPrefix(st.text, "COMMIT") && st.after == (s.param == "after") {
				die()
			}
			return nil
		})
		return s.db.Transaction(func(tx *gorm.DB) error {
			for range 10 {
				if _, err := outbox.Create(tx, "ordinary", nil); err != nil {
					return err
				}
			}
			return tx.Create(&effect{"business", 0}).Error
		})
	}
}

func TestKilledWithOutcomesUnwritten(t *testing.T) {
	each(t, func(t *testing.T, d database, dsn string) {
		db := d.open(t, dsn, nil)
		p := dbtest.Install(t, db, quick(), func(p *outbox.Plugin) { effectHandlers(p, db) })
		batch := make([]outbox.NewTask, 10)
		for i := range batch {
			batch[i].Func = "ordinary"
		}
		tasks, err := outbox.CreateBatch(db, batch...)
		if err != nil {
			t.Fatal(err)
		}
		if c := spawn(t, d, dsn, "dies with outcomes", ""); c.wait().Signal() != syscall.SIGKILL {
			t.Fatalf("the child was not killed: %v", c.ProcessState)
		}
		dbtest.Start(t, p)
		for _, task := range tasks {
			past := dbtest.Ended(t, db, task.ID)
			if n := effects(t, db, task.ID); past.Status != outbox.StatusError || past.Reason != outbox.ReasonInterrupted || past.Attempt != 1 || n != 1 {
				t.Errorf("%d effects, %+v", n, past)
			}
		}
	})
}

func TestKilledCreator(t *testing.T) {
	each(t, func(t *testing.T, d database, dsn string) {
		db := d.open(t, dsn, nil)
		p := dbtest.Install(t, db, quick(), func(p *outbox.Plugin) { effectHandlers(p, db) })
		dbtest.Start(t, p)
		for _, tt := range []struct {
			when  string
			tasks int64
		}{{"before", 0}, {"after", 10}} {
			if c := spawn(t, d, dsn, "creates", tt.when); c.wait().Signal() != syscall.SIGKILL {
				t.Fatalf("the child was not killed: %v", c.ProcessState)
			}
			// The server may take a moment to notice that its client is gone; what comes next is
			// created after that.
			later := dbtest.Create(t, db, "ordinary", nil, outbox.Priority(4))
			dbtest.Ended(t, db, later.ID)
			if tt.tasks > 0 {
				dbtest.Eventually(t, "all have run", func() bool { return dbtest.Count(t, db, &outbox.TaskModel{}) == 0 })
			}
			if err := db.Delete(&outbox.HistoryModel{}, "id = ?", later.ID).Error; err != nil {
				t.Fatal(err)
			}
			if n, b := dbtest.Count(t, db, &outbox.HistoryModel{}), effects(t, db, "business"); n != tt.tasks || b != tt.tasks/10 {
				t.Errorf("killed %s the commit: %d tasks have run, %d business rows; want %d and %d", tt.when, n, b, tt.tasks, tt.tasks/10)
			}
		}
	})
}
