package outbox_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
)

// inQueue are n tasks of one function.
func inQueue(n int, function, queue string, priority int) []outbox.NewTask {
	list := make([]outbox.NewTask, n)
	for i := range list {
		list[i] = outbox.NewTask{Func: function, Options: []outbox.CreateOption{outbox.Queue(queue), outbox.Priority(priority)}}
	}
	return list
}

// The claims of a dispatcher are told by the time that they leave in their tasks.
func TestPriorityIsOfAQueueAndQueuesTakeTurns(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		const many, few = 300, 20
		p := dbtest.Install(t, db, outbox.Options{Concurrency: 4}, func(p *outbox.Plugin) {
			p.Handle("fine", func(context.Context) error { return nil })
		})
		batch := append(inQueue(many, "fine", "large", 1), inQueue(few, "fine", "small", 2)...)
		batch = append(batch, inQueue(few, "fine", "small", 1)...)
		if _, err := outbox.CreateBatch(db, batch...); err != nil {
			t.Fatal(err)
		}
		dbtest.Start(t, p)
		var ended []outbox.HistoryModel
		dbtest.Eventually(t, "all have ended", func() bool { return dbtest.Count(t, db, &outbox.HistoryModel{}) == many+2*few })
		if err := db.Find(&ended).Error; err != nil {
			t.Fatal(err)
		}
		var lastFirst, firstSecond, last time.Time // of the small queue: by priority, and of all
		for _, h := range ended {
			if h.Queue != "small" {
				continue
			}
			at := *h.StartedAt
			if last.Before(at) {
				last = at
			}
			if h.Priority == 1 && lastFirst.Before(at) {
				lastFirst = at
			}
			if h.Priority == 2 && (firstSecond.IsZero() || at.Before(firstSecond)) {
				firstSecond = at
			}
		}
		if firstSecond.Before(lastFirst) {
			t.Errorf("a task of priority 2 was claimed at %v, one of priority 1 of its queue at %v", firstSecond, lastFirst)
		}
		before := 0
		for _, h := range ended {
			if h.Queue == "large" && h.StartedAt.Before(last) {
				before++
			}
		}
		if before > many/2 {
			t.Errorf("%d of the large queue's %d tasks were claimed before the last of the small one's %d", before, many, 2*few)
		}
	})
}

// A claim of few slots asks few of many queues, and those that are empty do not end the
// dispatching.
func TestManyQueues(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		const queues = 150
		p := dbtest.Install(t, db, outbox.Options{Concurrency: 7}, func(p *outbox.Plugin) {
			p.Handle("fine", func(context.Context) error { return nil })
			p.Handle("transactional", func(context.Context, *gorm.DB) error { return nil })
		})
		var batch []outbox.NewTask
		for i := range queues {
			function := "fine"
			if i%10 == 0 {
				function = "transactional"
			}
			batch = append(batch, inQueue(2, function, fmt.Sprint("queue ", i), 1+i%4)...)
		}
		if _, err := outbox.CreateBatch(db, batch...); err != nil {
			t.Fatal(err)
		}
		t.Run("RunDue runs all", func(t *testing.T) {
			if n, err := p.RunDue(t.Context()); err != nil || n != len(batch) {
				t.Errorf("%d of %d ran, with the error %v", n, len(batch), err)
			}
		})
		if _, err := outbox.CreateBatch(db, batch...); err != nil {
			t.Fatal(err)
		}
		t.Run("Run runs all", func(t *testing.T) {
			dbtest.Start(t, p)
			dbtest.Eventually(t, "all have ended", func() bool { return dbtest.Count(t, db, &outbox.HistoryModel{}) == int64(2*len(batch)) })
		})
	})
}

// What nobody can run is parked by one RunDue, in however many queues it stands.
func TestRunDueParksInManyQueues(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		const queues = 150
		p := dbtest.Install(t, db, outbox.Options{}, func(p *outbox.Plugin) {
			p.Handle("fine", func(context.Context) error { return nil })
		})
		var batch []outbox.NewTask
		for i := range queues {
			batch = append(batch, inQueue(1, "fine", fmt.Sprint("queue ", i), 2)...)
		}
		if _, err := outbox.CreateBatch(db, batch...); err != nil {
			t.Fatal(err)
		}
		if err := db.Exec("UPDATE outbox_tasks SET func = 'nobodys'").Error; err != nil {
			t.Fatal(err)
		}
		if n, err := p.RunDue(t.Context()); err != nil || n != 0 {
			t.Fatalf("%d ran, with the error %v", n, err)
		}
		if n := dbtest.Count(t, db.Where("state = ?", outbox.StateParked), &outbox.TaskModel{}); n != queues {
			t.Errorf("%d of %d are parked", n, queues)
		}
	})
}
