package faults_test

import (
	"context"
	"database/sql"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
)

// soon is how long after its context a call may return: SQLite's busy timeout is five seconds, and
// a dispatcher that has registered takes its leave of the database.
const soon = 8 * time.Second

// Every call that takes a context returns soon after the context ends, also when the database does not
// answer: without a free connection, from a server that accepts and says nothing, from a locked file.
func TestCallReturnsSoonAfterItsContext(t *testing.T) {
	idle := func(o *outbox.Options) { o.Heartbeat, o.HeartbeatLimit, o.ShutdownGrace = 0, 0, time.Second }
	each(t, func(t *testing.T, d database, dsn string) {
		for name, stall := range d.stalls() {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				dsn := d.dsn(t)
				through, begin := stall(t, dsn)
				db := d.open(t, through, nil)
				p := install(t, db, quick(idle), func(p *outbox.Plugin) { p.Handle("ordinary", func(context.Context) error { return nil }) })
				waiting, past := create(t, db, "ordinary", nil, outbox.StartAfter(time.Hour)), create(t, db, "ordinary", nil)
				if _, err := p.RunDue(t.Context()); err != nil {
					t.Fatal(err)
				}
				other := d.open(t, through, nil) // a pool and plugin of its own, which the stall meets while it runs
				running := install(t, other, quick(idle), func(p *outbox.Plugin) { p.Handle("ordinary", func(context.Context) error { return nil }) })
				runs, stop := context.WithCancel(t.Context())
				defer stop()
				ran := make(chan error, 1)
				go func() { ran <- running.Run(runs) }()
				eventually(t, "it runs", func() bool { return count(t, db, &outbox.ProcessModel{}) > 0 })
				begin(pool(t, db), pool(t, other))

				calls := map[string]func(context.Context) error{
					"Migrate": p.Migrate,
					"Run":     p.Run,
					"RunDue":  func(ctx context.Context) error { _, err := p.RunDue(ctx); return err },
					"Run, which has started": func(ctx context.Context) error {
						<-ctx.Done()
						stop()
						return <-ran
					},
				}
				handle := func(name string, call func(*gorm.DB) error) {
					calls[name] = func(ctx context.Context) error { return call(db.WithContext(ctx)) }
				}
				handle("Create", func(db *gorm.DB) error { _, err := outbox.Create(db, "ordinary", nil); return err })
				handle("Create with a key", func(db *gorm.DB) error {
					_, err := outbox.Create(db, "ordinary", nil, outbox.Key("k"))
					return err
				})
				handle("CreateBatch", func(db *gorm.DB) error {
					_, err := outbox.CreateBatch(db, outbox.NewTask{Func: "ordinary"}, outbox.NewTask{Func: "ordinary"})
					return err
				})
				handle("Cancel", func(db *gorm.DB) error { return outbox.Cancel(db, waiting.ID) })
				handle("CancelKey", func(db *gorm.DB) error { _, err := outbox.CancelKey(db, "k"); return err })
				handle("Reschedule", func(db *gorm.DB) error { return outbox.Reschedule(db, waiting.ID, time.Now()) })
				handle("Rerun", func(db *gorm.DB) error { _, err := outbox.Rerun(db, past.ID); return err })
				handle("Lookup", func(db *gorm.DB) error { _, _, err := outbox.Lookup(db, past.ID); return err })

				ctx, cancel := context.WithCancel(t.Context())
				over := make(chan string, len(calls))
				for name, call := range calls {
					go func() {
						_ = call(ctx)
						over <- name
					}()
				}
				<-time.After(300 * time.Millisecond) // so that they wait
				cancel()
				begun, limit := time.Now(), time.After(soon)
				for len(calls) > 0 {
					select {
					case name := <-over:
						delete(calls, name)
						if took := time.Since(begun); took > time.Second {
							t.Logf("%s: %v", name, took.Round(100*time.Millisecond))
						}
					case <-limit:
						t.Errorf("%v after their context these have not returned: %v", soon, slices.Sorted(maps.Keys(calls)))
						return
					}
				}
			})
		}
	})
}

func pool(t *testing.T, db *gorm.DB) *sql.DB {
	t.Helper()
	pool, err := db.DB()
	if err != nil {
		t.Fatal(err)
	}
	return pool
}

// stalls are ways in which a database does not answer: each gives a DSN to use, and what begins it.
func (d database) stalls() map[string]func(t *testing.T, dsn string) (through string, begin func(pools ...*sql.DB)) {
	starved := func(t *testing.T, dsn string) (string, func(...*sql.DB)) {
		return dsn, func(pools ...*sql.DB) {
			for _, pool := range pools {
				pool.SetMaxOpenConns(1)
				pool.SetMaxIdleConns(1)
				conn, err := pool.Conn(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = conn.Close() })
			}
		}
	}
	silent := func(t *testing.T, dsn string) (string, func(...*sql.DB)) {
		proxy, through := startProxy(t, d, dsn)
		return through, func(...*sql.DB) { proxy.silence() }
	}
	locked := func(t *testing.T, dsn string) (string, func(...*sql.DB)) {
		return dsn, func(...*sql.DB) {
			holder, err := sql.Open(d.driver, dsn)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = holder.Close() })
			tx, err := holder.BeginTx(context.Background(), nil) // the DSN makes it immediate
			if err != nil {
				t.Fatal(fmt.Errorf("lock the file: %w", err))
			}
			t.Cleanup(func() { _ = tx.Rollback() })
		}
	}
	all := map[string]func(*testing.T, string) (string, func(...*sql.DB)){"no free connection": starved}
	if d.name == "sqlite" {
		all["a locked file"] = locked
	} else {
		all["a silent server"] = silent
	}
	return all
}
