//go:build unix

package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/gorm-outbox/outbox"
)

// process is one of the four processes, also after it was killed and started again.
type process struct {
	mu    sync.Mutex // held while a fault acts on it
	s     *soak
	index int
	cmd   *exec.Cmd
	stdin io.WriteCloser
	told  chan struct{} // closed when all of its output has been read
}

// start starts the process with an index, as a new one.
func (s *soak) start(i int) (*process, error) {
	p := &process{s: s, index: i}
	return p, p.start()
}

func (p *process) start() error {
	s := p.s
	s.mu.Lock()
	s.incarnation++
	seed := s.seed + s.incarnation
	s.mu.Unlock()
	log, err := os.OpenFile(filepath.Join(s.host.TempDir(), fmt.Sprintf("process-%d.log", p.index)), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+s.database.dsn, runsEnv+"="+s.database.runs,
		rateEnv+"="+strconv.FormatFloat(s.rate/processes, 'g', -1, 64), seedEnv+"="+strconv.FormatUint(seed, 10))
	cmd.Stderr = log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // only the parent gets an interrupt
	if p.stdin, err = cmd.StdinPipe(); err != nil {
		return err
	}
	// Not StdoutPipe, because Wait would close it before the last lines are read.
	out, in, err := os.Pipe()
	if err != nil {
		return err
	}
	cmd.Stdout = in
	if err := cmd.Start(); err != nil {
		return err
	}
	in.Close()
	told := make(chan struct{})
	go func() {
		defer close(told)
		defer out.Close()
		s.ledger.follow(out)
	}()
	p.cmd, p.told = cmd, told
	return nil
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
	<-p.told
}

// rest stops the load of the process.
func (p *process) rest() { _, _ = fmt.Fprintln(p.stdin, "rest") }

// terminate asks the process to end, and returns an error unless it ends cleanly within limit.
func (p *process) terminate(limit time.Duration) error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	late := time.AfterFunc(limit, func() { _ = p.cmd.Process.Signal(syscall.SIGQUIT) }) // logs where it hangs
	err := p.cmd.Wait()
	<-p.told
	if !late.Stop() {
		return fmt.Errorf("process %d did not end within %v", p.index, limit)
	}
	if err != nil {
		return fmt.Errorf("process %d: %w", p.index, err)
	}
	return nil
}

// faults are the faults, each for a goroutine of its own until ctx is done. They leave all
// processes and the server running.
func (s *soak) faults() []func(context.Context, *rand.Rand) {
	every := func(low, high time.Duration, fault func(context.Context, *rand.Rand)) func(context.Context, *rand.Rand) {
		return func(ctx context.Context, r *rand.Rand) {
			for wait(ctx, between(r, low, high)) == nil {
				fault(ctx, r)
			}
		}
	}
	out := []func(context.Context, *rand.Rand){
		every(3*time.Second, 15*time.Second, s.killOne),
		every(3*time.Second, 15*time.Second, s.pauseOne),
	}
	if s.database.server != nil {
		out = append(out, every(20*time.Second, 60*time.Second, s.restartServer), every(2*time.Second, 10*time.Second, s.cutSessions))
	}
	return out
}

func between(r *rand.Rand, low, high time.Duration) time.Duration {
	return low + time.Duration(r.Int64N(int64(high-low)))
}

func (s *soak) killOne(ctx context.Context, r *rand.Rand) {
	p, down := s.children[r.IntN(processes)], between(r, 0, 3*time.Second)
	p.mu.Lock()
	defer p.mu.Unlock()
	claims, at := s.claims(p.cmd.Process.Pid), time.Now()
	p.kill()
	s.count(&s.kills)
	go s.recovery(ctx, "from a kill", at, func() (bool, error) { return s.gone(claims) })
	_ = wait(ctx, down)
	if err := p.start(); err != nil {
		s.host.Fatalf("start process %d: %v", p.index, err)
	}
}

func (s *soak) pauseOne(ctx context.Context, r *rand.Rand) {
	// From a very short pause to one that is much longer than the heartbeat limit.
	p, length := s.children[r.IntN(processes)], between(r, 10*time.Millisecond, between(r, 50*time.Millisecond, 3*heartbeatLimit))
	p.mu.Lock()
	defer p.mu.Unlock()
	claims, at := s.claims(p.cmd.Process.Pid), time.Now()
	if p.cmd.Process.Signal(syscall.SIGSTOP) != nil {
		return
	}
	s.count(&s.pauses)
	go s.recovery(ctx, "from a pause", at, func() (bool, error) { return s.gone(claims) })
	_ = wait(ctx, length)
	_ = p.cmd.Process.Signal(syscall.SIGCONT)
}

func (s *soak) restartServer(ctx context.Context, r *rand.Rand) {
	at := time.Now()
	s.database.server.Crash()
	_ = wait(ctx, between(r, 0, between(r, 100*time.Millisecond, 2*heartbeatLimit)))
	s.database.server.Start()
	s.count(&s.restarts)
	up := time.Now()
	// The processes have recovered when a task that was created since then has run.
	go s.recovery(ctx, "from a restart", at, func() (bool, error) {
		var n int64
		err := s.db.Model(&outbox.HistoryModel{}).Where("created_at > ? AND started_at IS NOT NULL", up).Limit(1).Count(&n).Error
		return n > 0, err
	})
}

// cutSessions ends some of the server's sessions.
func (s *soak) cutSessions(_ context.Context, r *rand.Rand) {
	var pids []int
	if s.db.Raw(s.database.sessions).Scan(&pids).Error != nil {
		return // the server is down
	}
	for range min(len(pids), 1+r.IntN(4)) {
		if s.db.Exec(fmt.Sprintf(s.database.end, pids[r.IntN(len(pids))])).Error == nil {
			s.count(&s.cut)
		}
	}
}

func (s *soak) count(n *int) {
	s.mu.Lock()
	*n++
	s.mu.Unlock()
}

// claim is a running task with the version of a process's claim.
type claim struct {
	ID      string
	Version int64
}

// claims returns the claims of the process with a pid.
func (s *soak) claims(pid int) (out []claim) {
	s.db.Model(&outbox.TaskModel{}).Where("state = ? AND process_id IN (?)", outbox.StateRunning,
		s.db.Model(&outbox.ProcessModel{}).Select("id").Where("pid = ?", pid)).Scan(&out)
	return out
}

// gone reports whether none of the claims is held any longer.
func (s *soak) gone(claims []claim) (bool, error) {
	for _, c := range claims {
		var n int64
		err := s.db.Model(&outbox.TaskModel{}).Where("id = ? AND version = ? AND state = ?", c.ID, c.Version, outbox.StateRunning).Count(&n).Error
		if err != nil || n > 0 {
			return false, err
		}
	}
	return true, nil
}

// recovery measures the time until the effects of a fault are over.
func (s *soak) recovery(ctx context.Context, fault string, at time.Time, undone func() (bool, error)) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settle)
	defer cancel()
	for {
		ok, err := undone()
		if ok && err == nil {
			break
		}
		if s.calm.Load() {
			return // the checks at the end are stricter than this one
		}
		if wait(ctx, 100*time.Millisecond) != nil {
			s.mu.Lock()
			s.unrecovered++
			s.mu.Unlock()
			fmt.Printf("no recovery %s at %s within %v\n", fault, at.UTC().Format(time.TimeOnly), settle)
			return
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.recoveries++
	if d := time.Since(at); d > s.slowest {
		s.slowest, s.slowestFault = d, fault
	}
}
