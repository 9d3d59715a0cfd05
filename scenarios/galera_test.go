package scenarios_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"gorm.io/driver/mysql"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

type galeraArgs struct {
	Text string `json:"text"`
}

// Two dispatchers work on one node each of a cluster that bounds its transactions. A node knows of
// the other's locks only when it commits, so that they conflict.
func TestGalera(t *testing.T) {
	t.Parallel()
	nodes := testdb.StartGalera(t, 2, "--wsrep-max-ws-rows=30", "--wsrep-max-ws-size=65536")
	var mu sync.Mutex
	runs := map[string]int{}
	log := &processLog{Handler: slog.DiscardHandler, lines: map[string]int{}}
	var dbs []*gorm.DB
	for node, server := range nodes {
		db, err := gorm.Open(mysql.Open(server.DSN()), &gorm.Config{Logger: logger.Discard})
		if err != nil {
			t.Fatal(err)
		}
		pool, err := db.DB()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = pool.Close() })
		if node == 0 {
			if err := db.Exec("CREATE TABLE effects (task varchar(36) NOT NULL PRIMARY KEY)").Error; err != nil {
				t.Fatal(err)
			}
		}
		// Slots for more than one transaction may change.
		p := dbtest.Install(t, db, outbox.Options{Concurrency: 100, Logger: slog.New(log), Backoff: func(int) time.Duration { return 0 }},
			func(p *outbox.Plugin) {
				p.Handle("galera.Plain", func(ctx context.Context, _ galeraArgs) error {
					task, _ := outbox.TaskFrom(ctx)
					mu.Lock()
					defer mu.Unlock()
					if runs[task.ID]++; task.MaxAttempts == 2 && task.Attempt == 1 {
						return errors.New("again")
					}
					return nil
				})
				p.Handle("galera.Tx", func(ctx context.Context, tx *gorm.DB) error {
					task, _ := outbox.TaskFrom(ctx)
					return tx.Exec("INSERT INTO effects (task) VALUES (?)", task.ID).Error
				})
			})
		dbs = append(dbs, db)
		defer dbtest.Start(t, p)()
	}
	const each = 100
	want := map[string]int{}
	begun := time.Now()
	for i := range each {
		db := dbs[i%2]
		want[dbtest.Create(t, db, "galera.Plain", galeraArgs{strings.Repeat("x", 3000)}).ID] = 1
		want[dbtest.Create(t, db, "galera.Plain", galeraArgs{}, outbox.MaxAttempts(2)).ID] = 2
		dbtest.Create(t, db, "galera.Tx", nil)
	}
	dbtest.Eventually(t, "all tasks end", func() bool { return dbtest.Count(t, dbs[1], &outbox.HistoryModel{}) == 3*each })
	t.Logf("%d tasks in %v", 3*each, time.Since(begun))
	var errs, effects int64
	if err := errors.Join(dbs[0].Model(&outbox.HistoryModel{}).Where("status <> ?", outbox.StatusSuccess).Count(&errs).Error,
		dbs[0].Table("effects").Count(&effects).Error); err != nil {
		t.Fatal(err)
	}
	if errs != 0 || effects != each {
		t.Errorf("%d tasks did not succeed, and %d of %d transactions had an effect", errs, effects, each)
	}
	mu.Lock()
	defer mu.Unlock()
	for id, n := range want {
		if runs[id] != n {
			t.Errorf("a task ran %d times instead of %d", runs[id], n)
		}
	}
}
