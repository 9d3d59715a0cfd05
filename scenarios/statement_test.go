package scenarios_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
)

// refusal makes the database refuse statements for a while.
type refusal struct {
	name, on string // the driver, for what one kind of server alone can refuse
	begin    func(t *testing.T, db *gorm.DB) (end func())
}

var refusals = []refusal{
	{"LOCK TABLE on the tasks, with a lock timeout", "pgx", func(t *testing.T, db *gorm.DB) func() { return lockTable(t, db, "outbox_tasks") }},
	{"LOCK TABLE on the history, with a lock timeout", "pgx", func(t *testing.T, db *gorm.DB) func() { return lockTable(t, db, "outbox_history") }},
	{"a read-only server", "pgx", func(t *testing.T, db *gorm.DB) func() {
		set := func(value string) {
			var schema string
			if err := db.Raw("SELECT current_schema()").Row().Scan(&schema); err != nil {
				t.Fatal(err)
			}
			// As on a standby, every write is refused with 25006; here by a trigger, because the
			// server is others' too.
			for _, table := range []string{"outbox_tasks", "outbox_history", "outbox_processes"} {
				if value == "on" {
					run(t, db, "CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'read-only' USING ERRCODE = '25006'; END $$")
					run(t, db, "CREATE TRIGGER refuse BEFORE INSERT OR UPDATE OR DELETE ON "+table+" FOR EACH STATEMENT EXECUTE FUNCTION refuse()")
				} else {
					run(t, db, "DROP TRIGGER refuse ON "+table)
				}
			}
		}
		set("on")
		return func() { set("off") }
	}},
	{"no space for history", "pgx", func(t *testing.T, db *gorm.DB) func() {
		run(t, db, "CREATE FUNCTION full() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'disk full' USING ERRCODE = '53100'; END $$")
		run(t, db, "CREATE TRIGGER refuse BEFORE INSERT ON outbox_history FOR EACH ROW EXECUTE FUNCTION full()")
		return func() { run(t, db, "DROP TRIGGER refuse ON outbox_history") }
	}},
	{"LOCK TABLES on the tasks, with a lock timeout", "mysql", func(t *testing.T, db *gorm.DB) func() { return lockTables(t, db, "outbox_tasks") }},
	{"LOCK TABLES on the history, with a lock timeout", "mysql", func(t *testing.T, db *gorm.DB) func() { return lockTables(t, db, "outbox_history") }},
	{"a read-only server", "mysql", func(t *testing.T, db *gorm.DB) func() {
		return raise(t, db, 1290, "outbox_tasks", "outbox_history", "outbox_processes")
	}},
	{"no space for history", "mysql", func(t *testing.T, db *gorm.DB) func() { return raise(t, db, 1114, "outbox_history") }},
	{"history is missing", "", func(t *testing.T, db *gorm.DB) func() {
		run(t, db, "ALTER TABLE outbox_history RENAME TO elsewhere")
		return func() { run(t, db, "ALTER TABLE elsewhere RENAME TO outbox_history") }
	}},
	{"the tasks are missing", "", func(t *testing.T, db *gorm.DB) func() {
		run(t, db, "ALTER TABLE outbox_tasks RENAME TO elsewhere")
		return func() { run(t, db, "ALTER TABLE elsewhere RENAME TO outbox_tasks") }
	}},
}

func lockTable(t *testing.T, db *gorm.DB, table string) func() {
	tx := db.Begin()
	run(t, tx, "LOCK TABLE "+table)
	return func() {
		if err := tx.Rollback().Error; err != nil {
			t.Fatal(err)
		}
	}
}

// lockTables does it on a connection of its own.
func lockTables(t *testing.T, db *gorm.DB, table string) func() {
	pool, err := db.DB()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := pool.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	exec := func(statement string) {
		if _, err := conn.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	exec("LOCK TABLES " + table + " WRITE")
	return func() {
		exec("UNLOCK TABLES")
		_ = conn.Close()
	}
}

// raise refuses every write to some tables with an error of MySQL.
func raise(t *testing.T, db *gorm.DB, number int, tables ...string) func() {
	var drop []string
	for _, table := range tables {
		for _, event := range []string{"INSERT", "UPDATE", "DELETE"} {
			name := fmt.Sprint("refuse_", table, "_", event)
			run(t, db, fmt.Sprintf("CREATE TRIGGER %s BEFORE %s ON %s FOR EACH ROW SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = %d, MESSAGE_TEXT = 'refused'",
				name, event, table, number))
			drop = append(drop, "DROP TRIGGER "+name)
		}
	}
	return func() {
		for _, statement := range drop {
			run(t, db, statement)
		}
	}
}

// The database refuses what the dispatcher asks of it, while handlers run and while more is due;
// the process lives on. Then everything ends as it would have: each run once, and nothing ran
// without a claim.
func TestDatabaseRefusesForAWhile(t *testing.T) {
	each(t, func(t *testing.T, d database, _ string) {
		for _, r := range refusals {
			if r.on != "" && r.on != d.driver {
				continue
			}
			t.Run(r.name, func(t *testing.T) {
				t.Parallel()
				dsn := d.dsn(t)
				plain := d.open(t, dsn, nil)
				dbtest.Install(t, plain, quick(), nil) // only looks
				if d.name == "postgres" {
					dsn += "&lock_timeout=100"
				}
				if d.driver == "mysql" {
					dsn += "&lock_wait_timeout=1"
				}
				var tp tap
				db := d.open(t, dsn, &tp)
				started, leaving := make(chan string, 100), make(chan struct{})
				var runs atomic.Int32
				p := dbtest.Install(t, db, quick(patient), func(p *outbox.Plugin) {
					p.Handle("held", func(ctx context.Context) error { started <- ""; <-leaving; runs.Add(1); return nil })
					p.Handle("transactional", func(ctx context.Context, tx *gorm.DB) error { runs.Add(1); return leave(ctx, tx) })
				})
				dbtest.Start(t, p)
				var ids []string
				for range 4 {
					ids = append(ids, dbtest.Create(t, db, "held", nil).ID)
					dbtest.Receive(t, started)
				}
				for range 4 {
					ids = append(ids, dbtest.Create(t, db, "transactional", nil, outbox.StartAfter(300*time.Millisecond)).ID)
				}
				var failed atomic.Int32
				end := r.begin(t, plain)
				tp.set(func(_ context.Context, s step) error {
					if !s.after && (strings.Contains(s.text, "outbox_history") || strings.Contains(s.text, "FOR UPDATE") || strings.Contains(s.text, "SET state = 'running'")) {
						failed.Add(1)
					}
					return nil
				})
				close(leaving)
				dbtest.Eventually(t, "it has been tried several times", func() bool { return failed.Load() > 5 })
				end()
				for _, id := range ids {
					if h := dbtest.Ended(t, plain, id); h.Status != outbox.StatusSuccess || h.Attempt-h.Uncounted != 1 {
						t.Errorf("%s %s, attempt %d, uncounted %d: %s", h.Status, h.Reason, h.Attempt, h.Uncounted, text(h))
					}
				}
				if n := dbtest.Count(t, plain, &effect{}); n != 4 {
					t.Errorf("%d effects of 4 transactional tasks", n)
				}
			})
		}
	})
}

// SQLite's file may not grow: nothing can be claimed or finished; nothing runs without a claim.
// With space again all ends.
func TestFullDisk(t *testing.T) {
	on(t, "sqlite", func(t *testing.T, d database, dsn string) {
		plain := d.open(t, dsn, nil)
		dbtest.Install(t, plain, quick(), nil) // only looks
		db := d.open(t, dsn, nil)
		pool, err := db.DB()
		if err != nil {
			t.Fatal(err)
		}
		pool.SetMaxOpenConns(1) // the limit belongs to the connection
		limitPages := func(n int) {
			var got int
			if err := db.Raw(fmt.Sprint("PRAGMA max_page_count = ", n)).Row().Scan(&got); err != nil {
				t.Fatal(err)
			}
		}
		started, leaving := make(chan string, 100), make(chan struct{})
		var runs atomic.Int32
		p := dbtest.Install(t, db, quick(patient), func(p *outbox.Plugin) {
			p.Handle("held", func(context.Context) (string, error) {
				runs.Add(1)
				started <- ""
				<-leaving
				return strings.Repeat("x", 50_000), nil
			})
			p.Handle("ordinary", func(context.Context) (string, error) { runs.Add(1); return strings.Repeat("x", 50_000), nil })
		})
		dbtest.Start(t, p)
		var ids []string
		for range 3 {
			ids = append(ids, dbtest.Create(t, db, "held", nil).ID)
			dbtest.Receive(t, started)
		}
		for range 5 {
			ids = append(ids, dbtest.Create(t, db, "ordinary", nil, outbox.StartAfter(time.Second)).ID)
		}
		limitPages(1) // which means: as many as there are
		close(leaving)
		<-time.After(2 * time.Second)
		if n := dbtest.Count(t, plain, &outbox.HistoryModel{}); n > 1 {
			t.Errorf("%d tasks ended, though the disk was full", n)
		}
		limitPages(1_000_000)
		for _, id := range ids {
			if h := dbtest.Ended(t, plain, id); h.Status != outbox.StatusSuccess || h.Attempt-h.Uncounted != 1 {
				t.Errorf("%+v: %s", h, text(h))
			}
		}
		if n := runs.Load(); int(n) != len(ids) {
			t.Errorf("%d runs of %d tasks", n, len(ids))
		}
	})
}

// Two transactions that each read what the other writes: one of them is refused only at its COMMIT.
func TestSerializationFailureAtCommit(t *testing.T) {
	on(t, "postgres", func(t *testing.T, d database, dsn string) {
		var tp tap
		db := d.open(t, dsn+"&default_transaction_isolation=serializable", &tp)
		run(t, db, "CREATE TABLE doctors (id integer PRIMARY KEY, duty boolean)")
		run(t, db, "INSERT INTO doctors VALUES (1, true), (2, true)")
		var calls atomic.Int32
		var both sync.WaitGroup
		both.Add(2)
		p := dbtest.Install(t, db, quick(patient), func(p *outbox.Plugin) {
			p.Handle("off.duty", func(ctx context.Context, tx *gorm.DB, a struct {
				ID int `json:"id"`
			}) error {
				var others int
				if err := tx.Raw("SELECT count(*) FROM doctors WHERE duty AND id <> ?", a.ID).Row().Scan(&others); err != nil {
					return err
				}
				if calls.Add(1) <= 2 {
					both.Done()
					both.Wait()
				}
				if others == 0 {
					return outbox.Permanent(errors.New("nobody else is on duty"))
				}
				return errors.Join(tx.Exec("UPDATE doctors SET duty = false WHERE id = ?", a.ID).Error, leave(ctx, tx))
			})
		})
		// Both are ready to commit before either does, so that the failure cannot come earlier.
		var ready atomic.Int32
		tp.set(func(_ context.Context, s step) error {
			if !s.after && strings.HasPrefix(s.text, "COMMIT; ") && strings.Contains(s.text, `DELETE FROM "outbox_tasks"`) {
				if ready.Add(1) <= 2 {
					for end := time.Now().Add(20 * time.Second); ready.Load() < 2 && time.Now().Before(end); {
						<-time.After(time.Millisecond)
					}
				}
			}
			return nil
		})
		dbtest.Start(t, p)
		a, b := dbtest.Create(t, db, "off.duty", outbox.Args{"id": 1}), dbtest.Create(t, db, "off.duty", outbox.Args{"id": 2})
		success, onDuty := 0, 0
		for _, task := range []*outbox.TaskModel{a, b} {
			h := dbtest.Ended(t, db, task.ID)
			n := effects(t, db, task.ID)
			if h.Status == outbox.StatusSuccess {
				success++
			}
			if (h.Status == outbox.StatusSuccess) != (n == 1) || h.Attempt != 1 {
				t.Errorf("%d effects, %+v: %s", n, h, text(h))
			}
		}
		if err := db.Raw("SELECT count(*) FROM doctors WHERE duty").Row().Scan(&onDuty); err != nil || onDuty != 1 || success != 1 {
			t.Errorf("%d on duty, %d successes, %v; want one of each", onDuty, success, err)
		}
		if calls.Load() < 3 {
			t.Errorf("%d calls: nothing failed", calls.Load())
		}
	})
}

// One outcome of a group is refused for its data: the others are durable, and it is stored with its
// text replaced.
func TestOneBadOutcomeInAGroup(t *testing.T) {
	each(t, func(t *testing.T, d database, dsn string) {
		db := d.open(t, dsn, nil)
		var ready sync.WaitGroup
		ready.Add(10)
		p := dbtest.Install(t, db, quick(patient), func(p *outbox.Plugin) {
			p.Handle("fails", func(_ context.Context, a struct {
				Text string `json:"text"`
			}) error {
				ready.Done()
				ready.Wait()
				return errors.New(a.Text)
			})
		})
		if d.name == "sqlite" {
			run(t, db, `CREATE TRIGGER refuse BEFORE INSERT ON outbox_history WHEN NEW.error = 'bad' BEGIN SELECT RAISE(ABORT, 'refused'); END`)
		} else {
			run(t, db, `ALTER TABLE outbox_history ADD CONSTRAINT refuse CHECK (error <> 'bad')`)
		}
		ids := map[string]string{}
		for i := range 10 {
			what := fmt.Sprint("good ", i)
			if i == 5 {
				what = "bad"
			}
			ids[what] = dbtest.Create(t, db, "fails", outbox.Args{"text": what}).ID
		}
		dbtest.Start(t, p)
		for what, id := range ids {
			h := dbtest.Ended(t, db, id)
			if h.Status != outbox.StatusError || (what == "bad") != strings.Contains(text(h), "refused by the database") || what != "bad" && text(h) != what {
				t.Errorf("%s: %s: %s", what, h.Status, text(h))
			}
		}
	})
}
