package outbox_test

import (
	"context"
	"database/sql"
	"errors"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
	"github.com/gorm-outbox/outbox/internal/dialect"
)

// second runs what comes second to an open transaction. Where it has to wait for that, it does
// before the first commits.
func second(t *testing.T, db *gorm.DB, first *gorm.DB, f func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- f() }()
	if db.Name() == "postgres" {
		dbtest.Eventually(t, "the second waits, or has not had to", func() bool {
			var n int64
			db.Raw("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()").Scan(&n)
			return n > 0 || len(done) > 0
		})
	}
	if err := first.Commit().Error; err != nil {
		t.Fatal(err)
	}
	return dbtest.Receive(t, done)
}

func TestTwoClaimsOfOneRow(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		d, pool := dbtest.Install(t, db, producer(), nil).Statements()
		for _, id := range []string{"a", "b"} {
			m := outbox.ProcessModel{ID: id, Functions: outbox.JSON(`["f"]`), StartedAt: time.Now(), BeatAt: time.Now(), Beats: 1}
			if err := db.Create(&m).Error; err != nil {
				t.Fatal(err)
			}
		}
		task := dbtest.Create(t, db, "f", nil)
		claim := func(c dialect.Conn, process string) (n int, err error) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			err = d.Claim(ctx, c, dialect.ClaimParams{Process: process, Partitions: fencePartition, Funcs: []string{"f"}, Limit: 10},
				func(dialect.Row) error { n++; return nil })
			return n, err
		}
		first := db.Begin()
		defer first.Rollback()
		if n, err := claim(first.Statement.ConnPool.(*sql.Tx), "a"); n != 1 || err != nil {
			t.Fatalf("the first claimed %d, %v", n, err)
		}
		if !d.Serial() {
			if n, err := claim(pool, "b"); n != 0 || err != nil {
				t.Errorf("while the first is open, the second claimed %d, %v, instead of passing the row over", n, err)
			}
		}
		n := 0
		if err := second(t, db, first, func() (err error) { n, err = claim(pool, "b"); return err }); n != 0 || err != nil {
			t.Errorf("the second claimed %d, %v", n, err)
		}
		if now, _, err := outbox.Lookup(db, task.ID); err != nil || *now.ProcessID != "a" || now.Version != 2 {
			t.Errorf("%+v, %v", now, err)
		}
	})
}

func TestRerunAtOnce(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		dbtest.Install(t, db, producer(), nil)
		past := outbox.HistoryModel{ID: "old", Func: "f", Args: outbox.JSON("{}"), Queue: "default", Priority: 2, MaxAttempts: 1,
			Version: 2, Status: outbox.StatusError, RunAt: fenceNow, CreatedAt: fenceNow, FinishedAt: fenceNow}
		if err := db.Create(&past).Error; err != nil {
			t.Fatal(err)
		}
		first := db.Begin()
		defer first.Rollback()
		if _, err := outbox.Rerun(first, past.ID); err != nil {
			t.Fatal(err)
		}
		err := second(t, db, first, func() error { _, err := outbox.Rerun(db, past.ID); return err })
		if n := dbtest.Count(t, db, &outbox.TaskModel{}); !errors.Is(err, outbox.ErrConflict) || n != 1 {
			t.Errorf("%d tasks, %v", n, err)
		}
	})
}
