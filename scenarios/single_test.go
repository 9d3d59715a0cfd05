package scenarios_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
	"github.com/gorm-outbox/outbox/internal/dialect"
)

// The only process on its database finds the tasks of its predecessor when it starts: the limit of
// heartbeats, half a minute here, is not waited for.
func TestSingleProcessRescuesAtItsStart(t *testing.T) {
	released := make(chan struct{})
	close(released)
	eachDSN(t, []string{"ordinary", "idempotent", "transactional"}, func(t *testing.T, dsn, kind string) {
		db := processDB(t, dsn)
		opts := dbtest.ShortHeartbeats()
		opts.SingleProcess, opts.Heartbeat, opts.HeartbeatLimit = true, 10*time.Second, 30*time.Second
		p := dbtest.Install(t, db, opts, func(p *outbox.Plugin) { heldHandlers(p, func(string) {}, released) })
		task := dbtest.Create(t, db, kind, nil, outbox.MaxAttempts(2))
		victim := startProcess(t, dsn)
		victim.says(t, "started "+task.ID)
		victim.kill()
		begun := time.Now()
		dbtest.Start(t, p)
		h := dbtest.Ended(t, db, task.ID)
		if h.Status != outbox.StatusSuccess || h.Attempt != 2 || len(h.Errors) != 1 || h.Errors[0].Reason != outbox.ReasonInterrupted {
			t.Errorf("%+v", h)
		}
		t.Logf("after %v", time.Since(begun))
	})
}

func TestSecondSingleProcessFailsByName(t *testing.T) {
	for _, d := range dbtest.Databases {
		t.Run(d.Name, func(t *testing.T) {
			t.Parallel()
			dsn := d.DSN(t)
			db := processDB(t, dsn)
			opts := dbtest.ShortHeartbeats()
			opts.SingleProcess = true
			first := dbtest.Install(t, db, opts, nil)
			other := dbtest.Install(t, processDB(t, dsn), opts, nil)
			plain := dbtest.Install(t, processDB(t, dsn), dbtest.ShortHeartbeats(), nil)
			stop := dbtest.Start(t, first)
			host, _ := os.Hostname()
			dbtest.Eventually(t, "it runs", func() bool { return dbtest.Count(t, db, &outbox.ProcessModel{}) == 1 })
			refused := func(when string) {
				t.Helper()
				err := other.Run(t.Context())
				if want := fmt.Sprintf("on host %s, with pid %d", host, os.Getpid()); err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("%s: %v, want %q", when, err, want)
				}
				if n := dbtest.Count(t, db, &outbox.ProcessModel{}); n != 1 {
					t.Errorf("%s: %d process rows, want 1", when, n)
				}
			}
			refused("while it runs")
			refused("again")
			// One of several is not refused, and the lock is free when its holder has ended.
			dbtest.Start(t, plain)()
			stop()
			dbtest.Start(t, other)()
			stop = dbtest.Start(t, first)
			if d.Name != "sqlite" {
				dbtest.Eventually(t, "it runs", func() bool { return dbtest.Count(t, db, &outbox.ProcessModel{}) == 1 })
				ended := endSessions(t, db)
				if len(ended) != 1 {
					t.Fatalf("%d sessions had the lock, want 1", len(ended))
				}
				dbtest.Eventually(t, "it has the lock again", func() bool {
					now := lockers(t, db)
					return len(now) == 1 && now[0] != ended[0]
				})
				refused("after its session was lost")
			}
			stop()
		})
	}
}

// endSessions ends the sessions that have the lock, and returns their ids.
func endSessions(t *testing.T, db *gorm.DB) []int64 {
	t.Helper()
	ids := lockers(t, db)
	for _, id := range ids {
		kill := "SELECT pg_terminate_backend(%d)"
		if db.Dialector.Name() == "mysql" {
			kill = "KILL %d" // which takes no parameters
		}
		if err := db.Exec(fmt.Sprintf(kill, id)).Error; err != nil {
			t.Fatal(err)
		}
	}
	return ids
}

// lockers are the sessions that have the lock of the only process.
func lockers(t *testing.T, db *gorm.DB) (ids []int64) {
	t.Helper()
	query := "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
	if db.Dialector.Name() == "mysql" {
		query = "SELECT IS_USED_LOCK(" + strings.Replace(dialect.AloneName, "?", "'outbox_processes'", 1) + ")"
	}
	rows, err := db.Raw(query).Rows()
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var id *int64
		if err := rows.Scan(&id); err != nil {
			t.Fatal(err)
		}
		if id != nil {
			ids = append(ids, *id)
		}
	}
	return ids
}
