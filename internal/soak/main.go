//go:build unix

// Command soak keeps four processes under load while it kills, pauses and disconnects them and
// restarts their database. The oracle checks every task. Soak is a program and not a test because
// it is meant to run for hours, and because it prints while it runs. See docs/reliability.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/oracle"
)

const (
	processes = 4
	accounts  = 20 // rows that transactional handlers contend for
	settle    = 2 * time.Minute
)

// soak is the parent of the four processes. It is never killed, so it knows all that has happened.
type soak struct {
	host     *host
	database database
	db       *gorm.DB
	o        *oracle.Oracle
	seed     uint64
	rate     float64
	children [processes]*process
	ledger   ledger
	calm     atomic.Bool // the faults and the load have stopped

	mu                           sync.Mutex
	kills, pauses, restarts, cut int
	incarnation                  uint64
	slowest                      time.Duration
	slowestFault                 string
	recoveries                   int
	unrecovered                  int
}

func main() {
	if dsn := os.Getenv(childEnv); dsn != "" {
		os.Exit(childMain(dsn))
	}
	duration := flag.Duration("duration", time.Minute, "how long faults are made")
	kind := flag.String("database", "postgres", "postgres, mariadb, mysql or sqlite")
	seed := flag.Uint64("seed", uint64(time.Now().UnixNano()), "of the faults and of what is created; the processes' timing has none")
	rate := flag.Float64("rate", 0, "transactions a second that create tasks, of all processes (default 160, on SQLite 60)")
	sabotage := flag.Bool("sabotage", false, "break the tables now and then, to see that it is found")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	h := &host{}
	err := func() error {
		defer h.close()
		s := &soak{host: h, seed: *seed, rate: *rate, ledger: ledger{open: map[string]*entry{}, broken: map[string]bool{}}}
		if err := s.open(ctx, *kind); err != nil {
			return err
		}
		return s.run(ctx, *duration, *sabotage)
	}()
	if err != nil {
		fmt.Println("FAILED:", err)
		os.Exit(1)
	}
	fmt.Println("passed")
}

// open creates the database and its tables.
func (s *soak) open(ctx context.Context, kind string) (err error) {
	if s.database, err = openDatabase(s.host, kind); err != nil {
		return err
	}
	if s.rate == 0 {
		s.rate = s.database.rate
	}
	if s.db, err = openDSN(s.database.dsn); err != nil {
		return err
	}
	var runs *gorm.DB
	if s.database.runs != "" {
		if runs, err = openDSN(s.database.runs); err != nil {
			return err
		}
	}
	if s.o, err = oracle.New(s.db, runs); err != nil {
		return err
	}
	plugin := outbox.New(outbox.Options{ProducerOnly: true})
	err = errors.Join(s.db.Use(plugin), plugin.Migrate(ctx), s.o.Migrate(ctx),
		s.db.Exec("CREATE TABLE soak_accounts (id integer PRIMARY KEY, n bigint NOT NULL)").Error)
	for i := range accounts {
		err = errors.Join(err, s.db.Exec("INSERT INTO soak_accounts VALUES (?, 0)", i).Error)
	}
	return err
}

func (s *soak) run(ctx context.Context, duration time.Duration, sabotage bool) error {
	fmt.Printf("soak: %s for %v, seed %d, %.0f creating transactions a second, %d processes; logs in %s\n",
		s.database.name, duration, s.seed, s.rate, processes, s.host.TempDir())
	begun := time.Now()
	for i := range s.children {
		p, err := s.start(i)
		if err != nil {
			return err
		}
		s.children[i] = p
	}
	defer func() {
		for _, p := range s.children {
			p.kill()
		}
	}()

	faults, stopFaults := context.WithTimeout(ctx, duration)
	defer stopFaults()
	var wg sync.WaitGroup
	for i, fault := range s.faults() {
		r := rand.New(rand.NewPCG(s.seed, uint64(i)))
		wg.Go(func() { fault(faults, r) })
	}
	print := time.NewTicker(10 * time.Second)
	defer print.Stop()
	for n := 0; faults.Err() == nil; n++ {
		select {
		case <-faults.Done():
		case <-print.C:
			if sabotage && n%2 == 1 {
				s.sabotage()
			}
			err := s.check(ctx)
			s.status(time.Since(begun), err)
		}
	}
	wg.Wait()
	return s.end(context.WithoutCancel(ctx), begun)
}

func (s *soak) status(age time.Duration, err error) {
	s.ledger.mu.Lock()
	created, checked, open, broken := s.ledger.created, s.ledger.checked, len(s.ledger.open), len(s.ledger.broken)
	s.ledger.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Printf("%7s  tasks %d (%d checked and forgotten, %d open)  kills %d  pauses %d  restarts %d  sessions cut %d  violations %d  "+
		"recoveries %d, slowest %v %s\n", age.Round(time.Second), created, checked, open, s.kills, s.pauses, s.restarts, s.cut, broken,
		s.recoveries, s.slowest.Round(10*time.Millisecond), s.slowestFault)
	if err != nil {
		fmt.Printf("         not looked this time: %v\n", err)
	}
}

// end stops the faults and the load, and checks that the system becomes healthy.
func (s *soak) end(ctx context.Context, begun time.Time) error {
	fmt.Println("the faults have stopped")
	s.calm.Store(true)
	for _, p := range s.children {
		p.rest()
	}
	calm := time.Now()
	limit := calm.Add(settle)
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		var tasks, rows int64
		err := errors.Join(s.db.Model(&outbox.TaskModel{}).Count(&tasks).Error, s.db.Model(&outbox.ProcessModel{}).Count(&rows).Error)
		if err == nil && tasks == 0 && rows == processes {
			fmt.Printf("drained after %v\n", time.Since(calm).Round(10*time.Millisecond))
			break
		}
		if time.Now().After(limit) {
			s.report([]oracle.Violation{{Invariant: oracle.Health, What: fmt.Sprintf(
				"%v after the faults there are %d tasks and %d process rows, of %d processes (%v)", settle, tasks, rows, processes, err), Story: "\n"}})
			break
		}
		<-tick.C
	}
	var errs []error
	for _, p := range s.children {
		errs = append(errs, p.terminate(time.Minute))
	}
	if err := errors.Join(errs...); err != nil {
		s.report([]oracle.Violation{{Invariant: oracle.Health, What: err.Error(), Story: "\n"}})
	}
	if err := s.forget(ctx); err != nil {
		return err
	}
	violations, err := s.o.Check(ctx, oracle.Question{Created: s.ledger.due(true), All: true, Rest: true, Stopped: true})
	if err != nil {
		return err
	}
	s.report(violations)
	s.status(time.Since(begun), nil)
	switch n := len(s.ledger.broken); {
	case n > 0:
		return fmt.Errorf("%d violations, seed %d; the processes' logs are in %s", n, s.seed, s.host.keep())
	case s.unrecovered > 0:
		return fmt.Errorf("%d faults without recovery within %v, seed %d", s.unrecovered, settle, s.seed)
	}
	return nil
}

// sabotage makes a change that must never happen.
func (s *soak) sabotage() {
	var id string
	s.db.Model(&outbox.HistoryModel{}).Select("id").Where("status = ?", outbox.StatusSuccess).Order("finished_at DESC").Limit(1).Scan(&id)
	fmt.Println("sabotage: the history of", id, "is deleted")
	s.db.Where("id = ?", id).Delete(&outbox.HistoryModel{})
}

// host replaces the test that testutil's servers need.
type host struct {
	testingTB
	dir     string
	kept    bool
	cleanup []func()
}

func (h *host) Helper()                           {}
func (h *host) Cleanup(f func())                  { h.cleanup = append(h.cleanup, f) }
func (h *host) Errorf(format string, args ...any) { fmt.Printf(format+"\n", args...) }
func (h *host) Fatalf(format string, args ...any) {
	h.Errorf(format, args...)
	h.close()
	os.Exit(1)
}
func (h *host) Skipf(format string, args ...any) { h.Fatalf(format, args...) }

func (h *host) TempDir() string {
	if h.dir == "" {
		var err error
		if h.dir, err = os.MkdirTemp("", "outbox-soak-"); err != nil {
			h.Fatalf("%v", err)
		}
	}
	return h.dir
}

// keep keeps the directory after close.
func (h *host) keep() string {
	h.kept = true
	return h.dir
}

func (h *host) close() {
	for len(h.cleanup) > 0 {
		last := len(h.cleanup) - 1
		f := h.cleanup[last]
		h.cleanup = h.cleanup[:last]
		f()
	}
	if h.dir != "" && !h.kept {
		_ = os.RemoveAll(filepath.Clean(h.dir))
	}
}
