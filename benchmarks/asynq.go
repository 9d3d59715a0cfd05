package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
)

// redisAddr is where asynq's Redis is; the environment variable names one, else the standard port
// is tried.
func redisAddr(ctx context.Context) (string, error) {
	addr := os.Getenv("OUTBOX_BENCH_REDIS")
	asked := addr != ""
	if !asked {
		addr = "127.0.0.1:6379"
	}
	client := redis.NewClient(&redis.Options{Addr: addr, MaxRetries: -1, DialTimeout: time.Second})
	defer client.Close()
	if err := client.Ping(ctx).Err(); err != nil {
		if asked {
			return "", fmt.Errorf("OUTBOX_BENCH_REDIS %s: %w", addr, err)
		}
		return "", nil
	}
	return addr, nil
}

// asynqQueue is asynq in a queue of its own in a Redis that others may use. It has no history: a
// task that is gone has finished.
type asynqQueue struct {
	redis     asynq.RedisClientOpt
	config    asynq.Config
	client    *asynq.Client
	inspector *asynq.Inspector
	queue     string // another one each round, for asynq counts what it has processed by the queue's name
}

func openAsynq(addr string, config asynq.Config) *asynqQueue {
	opt := asynq.RedisClientOpt{Addr: addr}
	config.LogLevel = asynq.FatalLevel
	return &asynqQueue{redis: opt, config: config, client: asynq.NewClient(opt), inspector: asynq.NewInspector(opt)}
}

func (q *asynqQueue) drop() error {
	if q.queue == "" {
		return nil
	}
	err := q.inspector.DeleteQueue(q.queue, true)
	if errors.Is(err, asynq.ErrQueueNotFound) {
		err = nil
	}
	return err
}

func (q *asynqQueue) load(ctx context.Context, n int) error {
	if err := q.drop(); err != nil {
		return err
	}
	q.queue = "outbox-bench-" + rand.Text()
	const producers = 16
	errs := make([]error, producers)
	var wg sync.WaitGroup
	for p := range producers {
		wg.Go(func() {
			for i := p; i < n && errs[p] == nil; i += producers {
				errs[p] = q.create(ctx, i, time.Time{})
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// create knows no transaction.
func (q *asynqQueue) create(ctx context.Context, i int, at time.Time) error {
	if !at.IsZero() {
		return errors.ErrUnsupported
	}
	payload, err := json.Marshal(number{i})
	if err != nil {
		return err
	}
	_, err = q.client.EnqueueContext(ctx, asynq.NewTask("bench", payload), asynq.Queue(q.queue))
	return err
}

func (q *asynqQueue) start(_ context.Context, ran func(int)) (func() error, error) {
	config := q.config
	config.Queues = map[string]int{q.queue: 1}
	server := asynq.NewServer(q.redis, config)
	err := server.Start(asynq.HandlerFunc(func(_ context.Context, t *asynq.Task) error {
		var a number
		if err := json.Unmarshal(t.Payload(), &a); err != nil {
			return err
		}
		ran(a.N)
		return nil
	}))
	return func() error {
		server.Shutdown()
		return nil
	}, err
}

func (q *asynqQueue) unfinished(context.Context) (bool, error) {
	info, err := q.inspector.GetQueueInfo(q.queue)
	if err != nil {
		return false, err
	}
	return info.Size > 0, nil
}

func (q *asynqQueue) finished(_ context.Context, n int) error {
	info, err := q.inspector.GetQueueInfo(q.queue)
	if err == nil && (info.Size != 0 || info.ProcessedTotal != n || info.FailedTotal != 0) {
		err = fmt.Errorf("%d left, %d processed, %d failed of %d", info.Size, info.ProcessedTotal, info.FailedTotal, n)
	}
	return err
}

func (q *asynqQueue) close() error {
	return errors.Join(q.drop(), q.client.Close(), q.inspector.Close())
}

// enterAsynq is nobody where there is no Redis.
func (b *bench) enterAsynq(ctx context.Context, name string, n int, config asynq.Config) ([]entrant, error) {
	addr, err := redisAddr(ctx)
	if err != nil || addr == "" {
		if err == nil {
			fmt.Fprintln(os.Stderr, "  asynq: skipped: no Redis at 127.0.0.1:6379, and OUTBOX_BENCH_REDIS names none")
		}
		return nil, err
	}
	return []entrant{{name, false, n, func(context.Context, string) (contestant, error) { return openAsynq(addr, config), nil }}}, nil
}
