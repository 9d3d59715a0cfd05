package scenarios_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
	"github.com/gorm-outbox/outbox/internal/oracle"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

// load is what handlers, creators and the oracle share.
type load struct {
	o  *oracle.Oracle
	db *gorm.DB

	mu      sync.Mutex
	created []oracle.Expect
}

// newLoad makes an oracle; runs are recorded in a database of their own where a handler's
// transaction keeps all others from writing.
func newLoad(t testing.TB, d database, db *gorm.DB, runsDSN string) *load {
	t.Helper()
	var runs *gorm.DB
	if runsDSN != "" {
		runs = d.open(t, runsDSN, nil)
	}
	o, err := oracle.New(db, runs)
	if err == nil {
		err = o.Migrate(context.Background())
	}
	if err != nil {
		t.Fatal(err)
	}
	return &load{o: o, db: db}
}

// kinds of handlers under load, and how often each is created.
var kinds = []oracle.Kind{oracle.Ordinary, oracle.Ordinary, oracle.Ordinary, oracle.Idempotent, oracle.Transactional}

func loadHandlers(p *outbox.Plugin, o *oracle.Oracle) {
	p.Handle(string(oracle.Ordinary), func(ctx context.Context) error { return o.Ran(ctx) })
	p.Handle(string(oracle.Idempotent), func(ctx context.Context) error { return o.Ran(ctx) }, outbox.Idempotent())
	p.Handle(string(oracle.Transactional), func(ctx context.Context, tx *gorm.DB) error {
		return errors.Join(o.Ran(ctx), o.Did(ctx, tx))
	})
}

// expect remembers tasks that somebody has created, or tried to.
func (l *load) expect(fate oracle.Fate, tasks ...*outbox.TaskModel) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, task := range tasks {
		if task != nil {
			l.created = append(l.created, oracle.Created(task, oracle.Kind(task.Func), fate))
		}
	}
}

// create makes tasks in transactions until ctx ends: most commit, some roll back, and of some
// nobody knows.
func (l *load) create(ctx context.Context, seed int) {
	undo := errors.New("rolled back")
	for i := seed; ctx.Err() == nil; i++ {
		var tasks []*outbox.TaskModel
		err := l.db.WithContext(ctx).Transaction(func(tx *gorm.DB) error {
			for range 1 + i%3 {
				task, err := outbox.Create(tx, string(kinds[i%len(kinds)]), nil, outbox.MaxAttempts(1+i%3), outbox.StartAfter(time.Duration(i%50)*time.Millisecond))
				if err != nil {
					return errors.Join(undo, err)
				}
				tasks = append(tasks, task)
			}
			if i%7 == 0 {
				return undo
			}
			return nil
		})
		switch {
		case err == nil:
			l.expect(oracle.Committed, tasks...)
		case errors.Is(err, undo):
			l.expect(oracle.RolledBack, tasks...)
		default:
			l.expect(oracle.Unknown, tasks...)
		}
	}
}

// drained waits until nothing is left, and asks the oracle.
func (l *load) drained(t testing.TB, q oracle.Question) {
	t.Helper()
	end := time.After(2 * time.Minute)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for n := int64(-1); n != 0; {
		select {
		case <-tick.C:
		case <-end:
			t.Errorf("%d tasks are left after two minutes", n)
			n = 0
			continue
		}
		if err := l.db.Model(&outbox.TaskModel{}).Count(&n).Error; err != nil {
			n = -1
		}
	}
	l.check(t, q)
}

func (l *load) check(t testing.TB, q oracle.Question) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	q.Created, q.All = l.created, true
	var violations []oracle.Violation
	dbtest.Eventually(t, "the oracle can read", func() bool { // the pool may still hold connections that the fault has ended
		var err error
		violations, err = l.o.Check(context.Background(), q)
		return err == nil
	})
	for i, v := range violations {
		if i == 5 {
			t.Errorf("and %d more", len(violations)-i)
			break
		}
		t.Error(v)
	}
	fates := map[oracle.Fate]int{}
	for _, e := range l.created {
		fates[e.Fate]++
	}
	t.Logf("%d violations of %v", len(violations), fates)
	if fates[oracle.Committed] < 50 {
		t.Errorf("too few tasks were committed for a test: %v", fates)
	}
}

// Two processes under load while the server crashes and comes back, again and again, and sessions
// are ended in between.
func TestServerCrashesUnderLoad(t *testing.T) {
	t.Parallel()
	// A commit is durable, or a crash would lose what it had committed.
	t.Run("postgres", func(t *testing.T) {
		cluster := testdb.StartPostgres(t, "synchronous_commit = on")
		crashesUnderLoad(t, named("postgres"), cluster.DSN(), func(db *gorm.DB) {
			_ = db.Exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND random() < 0.5").Error
		}, func() {
			cluster.Stop("immediate")
			cluster.Start()
		})
	})
	mysql := func(t *testing.T, name string, server *testdb.MySQLServer) {
		crashesUnderLoad(t, named(name), server.DSN()+"&interpolateParams=true", func(db *gorm.DB) {
			var ids []int64
			_ = db.Raw("SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID() AND RAND() < 0.5").Scan(&ids).Error
			for _, id := range ids {
				_ = db.Exec("KILL ?", id).Error
			}
		}, func() {
			server.Crash()
			server.Start()
		})
	}
	const outlives = "--innodb-flush-log-at-trx-commit=2" // what was committed outlives the crash
	t.Run("mariadb", func(t *testing.T) { mysql(t, "mariadb", testdb.StartMariaDB(t, outlives)) })
	t.Run("mysql", func(t *testing.T) { mysql(t, "mysql", testdb.StartMySQL(t, outlives)) })
}

func crashesUnderLoad(t *testing.T, d database, dsn string, endSessions func(*gorm.DB), crash func()) {
	db := d.open(t, dsn, nil)
	l := newLoad(t, d, db, "")
	opts := quick(func(o *outbox.Options) { o.HeartbeatLimit = 3 * time.Second })
	for i := range 2 {
		at := db
		if i > 0 {
			at = d.open(t, dsn, nil)
		}
		dbtest.Start(t, dbtest.Install(t, at, opts, func(p *outbox.Plugin) { loadHandlers(p, l.o) }))
	}
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for i := range 2 {
		wg.Go(func() { l.create(ctx, i) })
	}
	ending := d.open(t, dsn, nil)
	for range 3 {
		var before int64
		dbtest.Eventually(t, "the server answers", func() bool { return ending.Model(&outbox.HistoryModel{}).Count(&before).Error == nil })
		some := func(n int64) {
			dbtest.Eventually(t, "some have ended", func() bool {
				var now int64
				return ending.Model(&outbox.HistoryModel{}).Count(&now).Error == nil && now >= before+n
			})
		}
		some(50)
		endSessions(ending)
		some(100)
		crash()
	}
	stop()
	wg.Wait()
	l.drained(t, oracle.Question{Rest: true})
}

// A foreign process holds the write lock for longer than every busy timeout, under load.
func TestForeignWriteLockUnderLoad(t *testing.T) {
	on(t, "sqlite", func(t *testing.T, d database, dsn string) {
		db := d.open(t, strings.Replace(dsn, "_busy_timeout=5000", "_busy_timeout=500", 1), nil)
		l := newLoad(t, d, db, d.dsn(t))
		dbtest.Start(t, dbtest.Install(t, db, quick(func(o *outbox.Options) { o.HeartbeatLimit = 3 * time.Second }), func(p *outbox.Plugin) { loadHandlers(p, l.o) }))
		// Another handle on the same file, with a dispatcher of its own.
		other := d.open(t, dsn, nil)
		dbtest.Start(t, dbtest.Install(t, other, quick(func(o *outbox.Options) { o.HeartbeatLimit = 3 * time.Second }), func(p *outbox.Plugin) { loadHandlers(p, l.o) }))
		ctx, stop := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { l.create(ctx, 0) })
		dbtest.Eventually(t, "some have ended", func() bool { return dbtest.Count(t, db, &outbox.HistoryModel{}) > 100 })
		locker := spawn(t, d, dsn, "locks", "")
		locker.says(t, "locked")
		before := dbtest.Count(t, db, &outbox.HistoryModel{})
		<-time.After(10 * time.Second) // which is what the test is about
		if n := dbtest.Count(t, db, &outbox.HistoryModel{}); n != before {
			t.Errorf("%d tasks ended under the lock", n-before)
		}
		locker.letGo()
		locker.wait()
		dbtest.Eventually(t, "more have ended", func() bool { return dbtest.Count(t, db, &outbox.HistoryModel{}) > before+50 })
		stop()
		wg.Wait()
		l.drained(t, oracle.Question{Rest: true})
		var crashed int64
		if err := db.Model(&outbox.HistoryModel{}).Where("reason = 'interrupted' OR crashes > 0").Count(&crashed).Error; err != nil || crashed != 0 {
			t.Errorf("%d tasks of live processes were interrupted, %v", crashed, err)
		}
	})
}

func init() {
	roles["locks"] = func(s *self) error {
		tx := s.db.Begin()
		if err := tx.Exec("DELETE FROM effects WHERE task = 'nobody'").Error; err != nil {
			return err
		}
		say("locked")
		<-s.told
		return tx.Rollback().Error
	}
}

// A transaction that inserts first and commits last: its task is older than one that has run
// already.
func TestOlderTaskCommitsLater(t *testing.T) {
	servers(t, func(t *testing.T, d database, dsn string) {
		db := d.open(t, dsn, nil)
		dbtest.Start(t, dbtest.Install(t, db, quick(patient), func(p *outbox.Plugin) { effectHandlers(p, db) }))
		for i := range 3 {
			first := db.Begin()
			older := dbtest.Create(t, first, "ordinary", nil)
			younger := dbtest.Create(t, db, "ordinary", nil)
			dbtest.Ended(t, db, younger.ID)
			if older.ID > younger.ID || !older.RunAt.Before(younger.RunAt) {
				t.Fatalf("round %d: the older one has a later id or start", i)
			}
			if err := first.Commit().Error; err != nil {
				t.Fatal(err)
			}
			if h := dbtest.Ended(t, db, older.ID); h.Status != outbox.StatusSuccess || effects(t, db, older.ID) != 1 {
				t.Errorf("%+v", h)
			}
		}
	})
}
