//go:build unix

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/oracle"
)

// maxBacklog is the maximum number of due tasks: a machine that is too slow for the rate must not
// fall behind for ever.
const maxBacklog = 1000

// mix says how many of a thousand tasks are of each function. Functions that take long are rare,
// because they occupy slots.
var mix = []struct {
	path  string
	parts int
}{
	{"plain", 300}, {"plain.fail", 60}, {"plain.panic", 20}, {"plain.snooze", 40}, {"plain.long", 4}, {"plain.deaf", 4},
	{"again", 190}, {"again.long", 4}, {"again.fail", 30},
	{"tx", 240}, {"tx.fail", 40}, {"tx.panic", 20}, {"tx.chain", 30}, {"tx.nested", 15}, {"tx.long", 3},
}

func pick(r *rand.Rand) string {
	n := r.IntN(1000)
	for _, m := range mix {
		if n -= m.parts; n < 0 {
			return m.path
		}
	}
	return "plain"
}

// produce creates and changes tasks until it is told to stop.
func (c *child) produce(ctx context.Context, rate float64) {
	tick := time.NewTicker(time.Duration(float64(time.Second) / rate))
	defer tick.Stop()
	looked, backlog := time.Time{}, int64(0)
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if !c.producing.Load() {
			return
		}
		if time.Since(looked) > time.Second {
			looked = time.Now()
			c.db.Model(&outbox.TaskModel{}).Where("state = ? AND run_at <= ?", outbox.StatePending, time.Now()).Count(&backlog)
		}
		if backlog > maxBacklog {
			continue
		}
		// An error is the effect of a fault. The tasks that were reported are checked anyway.
		switch n := c.rand.IntN(100); {
		case n < 90:
			_ = c.create(ctx, 1)
		case n < 92:
			_ = c.create(ctx, 20)
		case n < 97:
			_ = c.change(ctx)
		default:
			_ = c.rerun(ctx)
		}
	}
}

// create creates tasks in one transaction. Some of these transactions roll back.
func (c *child) create(ctx context.Context, n int) error {
	var batch []outbox.NewTask
	for range n {
		path := pick(c.rand)
		opts := []outbox.CreateOption{outbox.Priority(1 + c.rand.IntN(4))}
		if c.rand.IntN(10) == 0 {
			opts = append(opts, outbox.StartAfter(time.Duration(c.rand.Int64N(int64(latestStart)))))
		}
		if c.rand.IntN(3) == 0 && path != "plain.deaf" {
			opts = append(opts, outbox.MaxAttempts(1+c.rand.IntN(4)))
		}
		if path == "plain.deaf" {
			opts = append(opts, outbox.Timeout(300*time.Millisecond))
		}
		if c.rand.IntN(10) == 0 {
			opts = append(opts, outbox.Key(fmt.Sprint("key ", c.rand.IntN(200)))) // refused while the key is held
		}
		if c.rand.IntN(5) == 0 {
			opts = append(opts, outbox.Queue("other"))
		}
		batch = append(batch, outbox.NewTask{Func: path, Options: opts})
	}
	return c.inTx(ctx, func(tx *gorm.DB) ([]*outbox.TaskModel, error) { return outbox.CreateBatch(tx, batch...) })
}

// inTx reports tasks before the commit, and the outcome after it.
func (c *child) inTx(ctx context.Context, create func(*gorm.DB) ([]*outbox.TaskModel, error)) error {
	tx := c.db.WithContext(ctx).Begin()
	if tx.Error != nil {
		return tx.Error
	}
	tasks, err := create(tx)
	if err != nil {
		tx.Rollback()
		return err // no COMMIT was sent
	}
	say := func(fate oracle.Fate) {
		for _, task := range tasks {
			e := oracle.Created(task, kinds[task.Func], fate)
			if task.Func == "plain.snooze" {
				e.Snoozes = 1
			}
			c.tell(e, task.Func)
		}
	}
	say(oracle.Unknown)
	if c.rand.IntN(20) == 0 {
		tx.Rollback()
		say(oracle.RolledBack)
		return nil
	}
	if err := tx.Commit().Error; err != nil {
		return err // it may have been committed
	}
	say(oracle.Committed)
	for _, task := range tasks {
		if task.RunAt.After(time.Now()) {
			c.later = append(c.later, task.ID)
		}
	}
	c.later = c.later[max(0, len(c.later)-200):]
	return nil
}

// change cancels or reschedules a task that waits or has waited.
func (c *child) change(ctx context.Context) error {
	if len(c.later) == 0 {
		return nil
	}
	i := c.rand.IntN(len(c.later))
	id := c.later[i]
	c.later = slices.Delete(c.later, i, i+1)
	db := c.db.WithContext(ctx)
	if c.rand.IntN(2) == 0 {
		return outbox.Cancel(db, id)
	}
	// The task may now start earlier, so its earlier NotBefore does not hold.
	c.tell(oracle.Expect{Task: id}, "")
	return outbox.Reschedule(db, id, time.Now().Add(time.Duration(c.rand.Int64N(int64(time.Second)))))
}

// rerun repeats one of the latest failures.
func (c *child) rerun(ctx context.Context) error {
	var failed []string
	err := c.db.WithContext(ctx).Model(&outbox.HistoryModel{}).Where("status = ? AND rerun_id IS NULL", outbox.StatusError).
		Order("finished_at DESC").Limit(20).Pluck("id", &failed).Error
	if err != nil || len(failed) == 0 {
		return err
	}
	return c.inTx(ctx, func(tx *gorm.DB) ([]*outbox.TaskModel, error) {
		task, err := outbox.Rerun(tx, failed[c.rand.IntN(len(failed))])
		return []*outbox.TaskModel{task}, err
	})
}
