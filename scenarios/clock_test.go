package scenarios_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
)

// clocked is a plugin whose clock is off: even the times that the database would tell are its own.
func clocked(t *testing.T, d database, dsn string, offset *atomic.Int64, change ...func(*outbox.Options)) (*outbox.Plugin, func(string, ...outbox.CreateOption) *outbox.TaskModel) {
	t.Helper()
	db := d.open(t, dsn, nil)
	opts := quick(append(change, func(o *outbox.Options) {
		o.HeartbeatLimit = 2 * time.Second
		o.Clock = func() time.Time { return time.Now().Add(time.Duration(offset.Load())) }
	})...)
	p := dbtest.Install(t, db, opts, func(p *outbox.Plugin) {
		p.Handle("ordinary", func(ctx context.Context) error { return leave(ctx, db) }, outbox.Idempotent())
	})
	return p, func(path string, opts ...outbox.CreateOption) *outbox.TaskModel {
		return dbtest.Create(t, db, path, nil, opts...)
	}
}

// Processes whose clocks are an hour apart, more than anything that could be put down to the
// database's: nobody is declared dead, since beats are counted and not dated.
func TestClocksThatDisagree(t *testing.T) {
	each(t, func(t *testing.T, d database, dsn string) {
		offsets := make([]atomic.Int64, 3)
		offsets[1].Store(int64(time.Hour))
		offsets[2].Store(int64(-time.Hour))
		db := d.open(t, dsn, nil)
		dbtest.Install(t, db, quick(), func(p *outbox.Plugin) { effectHandlers(p, db) })
		var creators []func(string, ...outbox.CreateOption) *outbox.TaskModel
		for i := range offsets {
			p, make := clocked(t, d, dsn, &offsets[i])
			creators = append(creators, make)
			dbtest.Start(t, p)
		}
		dbtest.Eventually(t, "all are there", func() bool { return dbtest.Count(t, db, &outbox.ProcessModel{}) == 3 })
		var before []outbox.ProcessModel
		if err := db.Order("id").Find(&before).Error; err != nil {
			t.Fatal(err)
		}
		for _, create := range creators {
			for range 5 {
				if h := dbtest.Ended(t, db, create("ordinary").ID); h.Status != outbox.StatusSuccess || h.Attempt != 1 {
					t.Errorf("%+v", h)
				}
			}
		}
		<-time.After(5 * time.Second) // over two limits
		var after []outbox.ProcessModel
		if err := db.Order("id").Find(&after).Error; err != nil || len(after) != 3 {
			t.Fatalf("%+v, %v", after, err)
		}
		for i := range after {
			if after[i].ID != before[i].ID || after[i].Beats <= before[i].Beats {
				t.Errorf("a live process was declared dead, or does not beat: %+v, was %+v", after[i], before[i])
			}
		}
	})
}

// The caller's own clock is off: "now" is the database's, and a time that the caller means by its
// own clock is kept.
func TestCallersClockIsOff(t *testing.T) {
	each(t, func(t *testing.T, d database, dsn string) {
		db := d.open(t, dsn, nil)
		p := dbtest.Install(t, db, quick(patient), func(p *outbox.Plugin) { effectHandlers(p, db) })
		dbtest.Start(t, p)
		late := dbtest.Create(t, db, "ordinary", nil, outbox.StartAt(time.Now().Add(-time.Hour))) // its clock is slow
		dbtest.Ended(t, db, late.ID)
		early := dbtest.Create(t, db, "ordinary", nil, outbox.StartAt(time.Now().Add(time.Hour))) // its clock is fast
		soon := dbtest.Create(t, db, "ordinary", nil)
		dbtest.Ended(t, db, soon.ID)
		if waiting, _, err := outbox.Lookup(db, early.ID); err != nil || waiting == nil || waiting.Attempt != 0 {
			t.Errorf("it was early: %+v, %v", waiting, err)
		}
	})
}

// The database's clock is moved between restarts, and under a running process: what is due starts,
// what is not waits, and a live process stays alive.
func TestDatabasesClockMoves(t *testing.T) {
	each(t, func(t *testing.T, d database, dsn string) {
		db := d.open(t, dsn, nil)
		dbtest.Install(t, db, quick(), func(p *outbox.Plugin) { effectHandlers(p, db) })
		var offset atomic.Int64
		for _, move := range []time.Duration{0, -time.Hour, 2 * time.Hour, -time.Hour} {
			offset.Add(int64(move))
			p, create := clocked(t, d, dsn, &offset)
			stop := dbtest.Start(t, p)
			soon, later := create("ordinary"), create("ordinary", outbox.StartAfter(30*time.Minute))
			if h := dbtest.Ended(t, db, soon.ID); h.Status != outbox.StatusSuccess || h.Attempt != 1 {
				t.Errorf("clock moved by %v: %+v", move, h)
			}
			if waiting, _, err := outbox.Lookup(db, later.ID); err != nil || waiting == nil || waiting.Attempt != 0 {
				t.Errorf("clock moved by %v: it was early: %+v, %v", move, waiting, err)
			}
			offset.Add(int64(time.Hour)) // while it runs
			if h := dbtest.Ended(t, db, later.ID); h.Status != outbox.StatusSuccess || h.Crashes != 0 {
				t.Errorf("clock moved by an hour: %+v", h)
			}
			offset.Add(int64(-time.Hour))
			if h := dbtest.Ended(t, db, create("ordinary").ID); h.Status != outbox.StatusSuccess {
				t.Errorf("clock moved back by an hour: %+v", h)
			}
			stop()
		}
	})
}
