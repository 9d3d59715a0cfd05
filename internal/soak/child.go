//go:build unix

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/oracle"
)

const (
	childEnv = "OUTBOX_SOAK_CHILD" // its database's DSN
	runsEnv  = "OUTBOX_SOAK_RUNS"  // the DSN of the database of runs, if it is a separate one
	rateEnv  = "OUTBOX_SOAK_RATE"  // transactions a second that create tasks
	seedEnv  = "OUTBOX_SOAK_SEED"  // the seed of the tasks that it creates
)

const (
	heartbeat      = time.Second
	heartbeatLimit = 4 * time.Second
	latestStart    = 15 * time.Second // of tasks that are created for later
)

// child is one of the four processes: it creates tasks and runs them.
type child struct {
	db, runs  *gorm.DB
	o         *oracle.Oracle
	plugin    *outbox.Plugin
	producing atomic.Bool

	mu  sync.Mutex
	out *bufio.Writer

	// These belong to the producer only.
	rand  *rand.Rand
	later []string // its own tasks that may still wait
}

// line is a child's report about a task that it creates: first that the commit is about to happen,
// then its outcome. A pipe keeps the output of a process that has been killed.
type line struct {
	oracle.Expect
	Func string
}

func childMain(dsn string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	c := &child{out: bufio.NewWriter(os.Stdout)}
	for c.open(dsn) != nil { // while the server is down
		if wait(ctx, 200*time.Millisecond) != nil {
			return 0
		}
	}
	c.producing.Store(true)
	go func() {
		in := bufio.NewScanner(os.Stdin)
		in.Scan() // "rest"
		c.producing.Store(false)
		if !in.Scan() { // the parent has ended
			os.Exit(1)
		}
	}()
	var rate float64
	var seed uint64
	_, _ = fmt.Sscan(os.Getenv(rateEnv), &rate)
	_, _ = fmt.Sscan(os.Getenv(seedEnv), &seed)
	c.rand = rand.New(rand.NewPCG(seed, 0))
	go c.produce(ctx, rate)
	for {
		err := c.plugin.Run(ctx)
		if ctx.Err() == nil { // the server was down at the start
			slog.Warn("run", "err", err)
			_ = wait(ctx, 200*time.Millisecond)
			continue
		}
		if err == nil {
			err = c.leak()
		}
		if err != nil {
			slog.Error("not a clean end", "err", err)
			return 1
		}
		return 0
	}
}

// leak waits until no connection is in use.
func (c *child) leak() error {
	pool, err := c.db.DB()
	if err != nil {
		return err
	}
	limit := time.Now().Add(10 * time.Second)
	for pool.Stats().InUse > 0 {
		if time.Now().After(limit) {
			return fmt.Errorf("%d connections are still in use, %d goroutines", pool.Stats().InUse, runtime.NumGoroutine())
		}
		_ = wait(context.Background(), 50*time.Millisecond)
	}
	return nil
}

func (c *child) open(dsn string) (err error) {
	if c.db == nil {
		if c.db, err = openDSN(dsn); err != nil {
			return err
		}
	}
	if runs := os.Getenv(runsEnv); runs != "" && c.runs == nil {
		if c.runs, err = openDSN(runs); err != nil {
			return err
		}
	}
	if c.o, err = oracle.New(c.db, c.runs); err != nil {
		return err
	}
	c.plugin = outbox.New(outbox.Options{
		Concurrency: slots(dsn), Scan: "@every 200ms", Heartbeat: heartbeat, HeartbeatLimit: heartbeatLimit,
		ShutdownGrace: 5 * time.Second, CancelGrace: 5 * time.Second,
		Backoff: func(int) time.Duration { return 100*time.Millisecond + rand.N(time.Second) },
		Logger:  slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	c.handle()
	return c.db.Use(c.plugin)
}

var errWanted = errors.New("an error on purpose")

// kinds of the handlers, by path.
var kinds = map[string]oracle.Kind{
	"plain": oracle.Ordinary, "plain.fail": oracle.Ordinary, "plain.panic": oracle.Ordinary, "plain.snooze": oracle.Ordinary,
	"plain.long": oracle.Ordinary, "plain.deaf": oracle.Ordinary,
	"again": oracle.Idempotent, "again.long": oracle.Idempotent, "again.fail": oracle.Idempotent,
	"tx": oracle.Transactional, "tx.fail": oracle.Transactional, "tx.panic": oracle.Transactional, "tx.chain": oracle.Transactional,
	"tx.nested": oracle.Transactional, "tx.long": oracle.Transactional,
}

func (c *child) handle() {
	for path, kind := range kinds {
		var opts []outbox.HandlerOption
		if kind == oracle.Idempotent {
			opts = append(opts, outbox.Idempotent())
		}
		if kind == oracle.Transactional {
			c.plugin.Handle(path, func(ctx context.Context, tx *gorm.DB) error {
				if err := errors.Join(c.o.Ran(ctx), c.o.Did(ctx, tx)); err != nil {
					return err
				}
				return c.transactional(ctx, tx, path)
			})
			continue
		}
		c.plugin.Handle(path, func(ctx context.Context) error {
			if err := c.o.Ran(ctx); err != nil {
				return err
			}
			return c.ordinary(ctx, path)
		}, opts...)
	}
}

func (c *child) ordinary(ctx context.Context, path string) error {
	switch path {
	case "plain.fail", "again.fail":
		return errWanted
	case "plain.panic":
		panic(errWanted)
	case "plain.snooze":
		if task, _ := outbox.TaskFrom(ctx); task.Uncounted == 0 {
			return outbox.Snooze(rand.N(time.Second))
		}
	case "plain.deaf": // ignores the end of its context
		return wait(context.Background(), rand.N(4*time.Second))
	case "plain.long", "again.long":
		return wait(ctx, rand.N(2*heartbeatLimit))
	}
	return wait(ctx, rand.N(20*time.Millisecond))
}

func (c *child) transactional(ctx context.Context, tx *gorm.DB, path string) error {
	switch path {
	case "tx.fail":
		return errWanted
	case "tx.panic":
		panic(errWanted)
	case "tx.long":
		return wait(ctx, rand.N(time.Second))
	case "tx.nested":
		_ = tx.Transaction(func(tx *gorm.DB) error {
			return errors.Join(c.o.Did(ctx, tx), errWanted) // rolled back
		})
		return nil
	case "tx.chain":
		task, err := outbox.Create(tx, "plain", nil)
		if err == nil {
			c.tell(oracle.Created(task, oracle.Ordinary, oracle.Unknown), "plain")
		}
		return err
	}
	// Two rows in random order: this causes lock waits and deadlocks.
	for range 2 {
		if err := tx.Exec("UPDATE soak_accounts SET n = n + 1 WHERE id = ?", rand.IntN(accounts)).Error; err != nil {
			return err
		}
	}
	return nil
}

func (c *child) tell(e oracle.Expect, path string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b, err := json.Marshal(line{e, path})
	if err == nil {
		_, err = c.out.Write(append(b, '\n'))
	}
	if err = errors.Join(err, c.out.Flush()); err != nil {
		os.Exit(1) // the parent has ended
	}
}

func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}
