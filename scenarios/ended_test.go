package scenarios_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
)

// soon is how long after its context a call may return: SQLite's busy timeout is five seconds, and
// a dispatcher that has registered waits up to five more to remove its process row.
const soon = 12 * time.Second

var definition = outbox.Define[outbox.Args]("defined")

// Every call that takes a context returns soon after the context ends, also when the database does
// not answer: without a free connection, from a server that accepts and says nothing, from a locked
// file.
func TestCallReturnsSoonAfterItsContext(t *testing.T) {
	idle := func(o *outbox.Options) { o.Heartbeat, o.HeartbeatLimit, o.ShutdownGrace = 0, 0, time.Second }
	each(t, func(t *testing.T, d database, dsn string) {
		for name, stall := range d.stalls() {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				dsn := d.dsn(t)
				through, begin := stall(t, dsn)
				db := d.open(t, through, nil)
				p := dbtest.Install(t, db, quick(idle), func(p *outbox.Plugin) {
					p.Handle("ordinary", fine)
					definition.Handle(p, func(context.Context, outbox.Args) error { return nil })
				})
				waiting, past := dbtest.Create(t, db, "ordinary", nil, outbox.StartAfter(time.Hour)), dbtest.Create(t, db, "ordinary", nil)
				if _, err := p.RunDue(t.Context()); err != nil {
					t.Fatal(err)
				}
				other := d.open(t, through, nil) // a pool and plugin of its own, which the stall meets while it runs
				running := dbtest.Install(t, other, quick(idle), func(p *outbox.Plugin) { p.Handle("ordinary", fine) })
				runs, stop := context.WithCancel(t.Context())
				defer stop()
				ran := make(chan error, 1)
				go func() { ran <- running.Run(runs) }()
				dbtest.Eventually(t, "it runs", func() bool { return dbtest.Count(t, db, &outbox.ProcessModel{}) > 0 })
				inTurn := d.open(t, through, nil) // another, whose handler runs when the stall begins
				started := make(chan struct{}, 1)
				due := dbtest.Install(t, inTurn, quick(func(o *outbox.Options) {
					o.Queues, o.ShutdownGrace, o.CancelGrace = []string{"turn"}, 200*time.Millisecond, 200*time.Millisecond
					o.Heartbeat, o.HeartbeatLimit = time.Second, 6*time.Second
				}), func(p *outbox.Plugin) {
					p.Handle("waits", func(ctx context.Context) error { started <- struct{}{}; <-ctx.Done(); return nil })
				})
				dbtest.Create(t, inTurn, "waits", nil, outbox.Queue("turn"))
				runsDue, stopDue := context.WithCancel(t.Context())
				defer stopDue()
				ranDue := make(chan error, 1)
				go func() { _, err := due.RunDue(runsDue); ranDue <- err }()
				dbtest.Receive(t, started)
				late := d.open(t, through, nil) // its plugin has not met a database that answers
				begin(pool(t, db), pool(t, other), pool(t, inTurn), pool(t, late))
				first := time.Now()
				unplaced := outbox.New(quick(idle))
				unplaced.Handle("ordinary", fine)
				if err := late.Use(unplaced); err != nil || time.Since(first) > soon {
					t.Errorf("Use: %v, after %v", err, time.Since(first))
				}

				calls := map[string]func(context.Context) error{
					"Migrate": p.Migrate,
					"Run":     p.Run,
					"RunDue":  func(ctx context.Context) error { _, err := p.RunDue(ctx); return err },
					"Run, which has started": func(ctx context.Context) error {
						<-ctx.Done()
						stop()
						return <-ran
					},
					"RunDue, whose handler runs": func(ctx context.Context) error {
						<-ctx.Done()
						stopDue()
						return <-ranDue
					},
					"Migrate, the first call": unplaced.Migrate,
					"Run, the first call":     unplaced.Run,
					"RunDue, the first call":  func(ctx context.Context) error { _, err := unplaced.RunDue(ctx); return err },
					"Create, the first call": func(ctx context.Context) error {
						_, err := outbox.Create(late.WithContext(ctx), "ordinary", nil)
						return err
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
				handle("Create of a Definition", func(db *gorm.DB) error { _, err := definition.Create(db, nil); return err })
				handle("Create in a transaction", func(db *gorm.DB) error {
					return db.Transaction(func(tx *gorm.DB) error { _, err := outbox.Create(tx, "ordinary", nil); return err })
				})
				handle("Cancel", func(db *gorm.DB) error { return outbox.Cancel(db, waiting.ID) })
				handle("CancelKey", func(db *gorm.DB) error { _, err := outbox.CancelKey(db, "k"); return err })
				handle("Reschedule", func(db *gorm.DB) error { return outbox.Reschedule(db, waiting.ID, time.Now()) })
				handle("Rerun", func(db *gorm.DB) error { _, err := outbox.Rerun(db, past.ID); return err })
				handle("Lookup", func(db *gorm.DB) error { _, _, err := outbox.Lookup(db, past.ID); return err })

				returnSoon(t, calls)
			})
		}
	})
}

// The same where the server falls silent in the middle of a call, at each of its statements.
func TestCallReturnsSoonFromEachStatement(t *testing.T) {
	calls := map[string]func(context.Context, *gorm.DB, *outbox.Plugin, ids) error{
		"CreateBatch with a held key in another context's transaction": func(ctx context.Context, db *gorm.DB, _ *outbox.Plugin, _ ids) error {
			tx := db.Begin() // whose end is the application's
			held := []outbox.CreateOption{outbox.Key("held")}
			_, err := outbox.CreateBatch(tx.WithContext(ctx), outbox.NewTask{Func: "ordinary"}, outbox.NewTask{Func: "ordinary", Options: held})
			go tx.Rollback()
			return err
		},
		"CreateBatch": func(ctx context.Context, db *gorm.DB, _ *outbox.Plugin, _ ids) error {
			tasks := []outbox.NewTask{{Func: "ordinary"}, {Func: "ordinary"}}
			_, err := outbox.CreateBatch(db.WithContext(ctx), tasks...)
			return err
		},
		"CreateBatch with a held key": func(ctx context.Context, db *gorm.DB, _ *outbox.Plugin, _ ids) error {
			held := []outbox.CreateOption{outbox.Key("held")}
			_, err := outbox.CreateBatch(db.WithContext(ctx), outbox.NewTask{Func: "ordinary"}, outbox.NewTask{Func: "ordinary", Options: held})
			return err
		},
		"Cancel": func(ctx context.Context, db *gorm.DB, _ *outbox.Plugin, id ids) error {
			return outbox.Cancel(db.WithContext(ctx), id.waiting)
		},
		"CancelKey": func(ctx context.Context, db *gorm.DB, _ *outbox.Plugin, id ids) error {
			_, err := outbox.CancelKey(db.WithContext(ctx), "held")
			return err
		},
		"Reschedule": func(ctx context.Context, db *gorm.DB, _ *outbox.Plugin, id ids) error {
			return outbox.Reschedule(db.WithContext(ctx), id.waiting, time.Now().Add(time.Hour))
		},
		"Rerun": func(ctx context.Context, db *gorm.DB, _ *outbox.Plugin, id ids) error {
			_, err := outbox.Rerun(db.WithContext(ctx), id.past)
			return err
		},
		"Migrate": func(ctx context.Context, _ *gorm.DB, p *outbox.Plugin, _ ids) error { return p.Migrate(ctx) },
		"RunDue": func(ctx context.Context, _ *gorm.DB, p *outbox.Plugin, _ ids) error {
			_, err := p.RunDue(ctx)
			return err
		},
	}
	servers(t, func(t *testing.T, d database, _ string) {
		for name, call := range calls {
			partitions := 1
			if name == "RunDue" {
				partitions = 4 // it has dozens of statements
			}
			for partition := range partitions {
				t.Run(fmt.Sprint(name, " ", partition), func(t *testing.T) {
					t.Parallel()
					dsn := d.dsn(t)
					plain := d.open(t, dsn, nil)
					clock := time.Now() // stands still, so that RunDue meets what it has run
					opts := quick(func(o *outbox.Options) {
						o.Heartbeat, o.HeartbeatLimit, o.ShutdownGrace, o.CancelGrace = time.Second, 3*time.Second, time.Millisecond, time.Millisecond
						o.Clock, o.Backoff = func() time.Time { return clock }, func(int) time.Duration { return 0 }
					})
					setup := func(p *outbox.Plugin) {
						p.Handle("ordinary", fine)
						p.Handle("again", func(context.Context) error { return errors.New("on purpose") })
					}
					p := dbtest.Install(t, plain, opts, setup)
					foreign := strings.Contains(name, "another context's") // begins without ours
					past := dbtest.Create(t, plain, "ordinary", nil).ID
					if _, err := p.RunDue(t.Context()); err != nil {
						t.Fatal(err)
					}
					for n := partition + 1; ; n += partitions {
						plain.Exec("DELETE FROM outbox_tasks")
						waiting := dbtest.Create(t, plain, "ordinary", nil, outbox.Key("held"), outbox.StartAfter(time.Hour)).ID
						dbtest.Create(t, plain, "again", nil, outbox.MaxAttempts(9))
						proxy, through := startProxy(t, d, dsn)
						db := d.open(t, through, nil)
						p := dbtest.Install(t, db, opts, setup)
						fallen := make(chan string, 1)
						seen := 0
						proxy.set(func(statement string) action {
							if own := foreign && (strings.Contains(statement, "TRANSACTION") || statement == "begin"); !own {
								seen++
							}
							if seen != n {
								return pass
							}
							proxy.mute = true
							fallen <- statement
							return hole
						})
						ctx, cancel := context.WithCancel(t.Context())
						defer cancel()
						over := make(chan error, 1)
						go func() { over <- call(ctx, db, p, ids{waiting, past}) }()
						var at string
						select {
						case at = <-fallen:
						case <-over:
							proxy.close()
							if n == 1 {
								t.Error("it has said nothing")
							}
							return
						}
						<-time.After(50 * time.Millisecond) // so that it waits
						cancel()
						begun := time.Now()
						select {
						case err := <-over:
							if took := time.Since(begun); took > time.Second {
								t.Logf("%.80q: %v: %v", at, took.Round(100*time.Millisecond), err)
							}
						case <-time.After(soon):
							t.Errorf("silent from its statement %d on, %.80q, it has not returned %v after its context", n, at, soon)
						}
						proxy.close() // for the server: what it has locked is free then
					}
				})
			}
		}
	})
}

type ids struct{ waiting, past string }

// returnSoon lets calls wait, ends their context, and fails the test for those that stay.
func returnSoon(t *testing.T, calls map[string]func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	over := make(chan string, len(calls))
	for name, call := range calls {
		go func() {
			defer func() { over <- name }() // also where a call ends its goroutine
			if err := call(ctx); ctx.Err() == nil {
				t.Logf("%s did not wait: %v", name, err)
			}
		}()
	}
	<-time.After(300 * time.Millisecond) // so that they wait
	cancel()
	begun, limit := time.Now(), time.After(soon)
	waiting := maps.Clone(calls)
	for len(waiting) > 0 {
		select {
		case name := <-over:
			delete(waiting, name)
			if took := time.Since(begun); took > time.Second {
				t.Logf("%s: %v", name, took.Round(100*time.Millisecond))
			}
		case <-limit:
			t.Errorf("%v after their context these have not returned: %v", soon, slices.Sorted(maps.Keys(waiting)))
			return
		}
	}
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
