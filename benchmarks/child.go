package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/pgnotify"
)

// childEnv holds the job of a child process.
const childEnv = "OUTBOX_BENCH_CHILD"

// job is what a child process does: it dispatches.
type job struct {
	Queue string // who: "outbox", "bare", "river", "river tuned", "river sql"
	DSN   string
	Slots int  // 0 for the default
	Conns int  // 0 for the pool's default
	Wake  bool // with LISTEN
	Times bool // keep when each task ran
}

// What a parent writes to a child, and what the child answers:
//
//	            ready          when it is connected
//	go          n COUNT        whenever more tasks have run
//	mark        cpu NS, rss BYTES, logs LINES
//	(the end)   run I UNIXNANO for each run if Times, then the same, then bye
//
// The parent's death ends its input, and so the child.

func childMain(config string) error {
	var j job
	if err := json.Unmarshal([]byte(config), &j); err != nil {
		return err
	}
	ctx := context.Background()
	c := &child{out: bufio.NewWriter(os.Stdout), news: make(chan struct{}, 1)}
	q, err := j.open(ctx, c)
	if err != nil {
		return err
	}
	commands := bufio.NewScanner(os.Stdin)
	c.say("ready")
	if !commands.Scan() || commands.Text() != "go" {
		return q.close()
	}
	stop, err := q.start(ctx, func(i int) {
		c.ran.Add(1)
		select {
		case c.news <- struct{}{}:
		default:
		}
		if j.Times {
			now := time.Now()
			c.mu.Lock()
			c.runs = append(c.runs, seen{i, now})
			c.mu.Unlock()
		}
	})
	if err != nil {
		return err
	}
	over := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { c.count(over) })
	for commands.Scan() {
		c.mark()
	}
	err = stop()
	close(over)
	wg.Wait()
	c.say("n %d", c.ran.Load())
	for _, r := range c.runs {
		fmt.Fprintf(c.out, "run %d %d\n", r.i, r.at.UnixNano())
	}
	c.mark()
	c.say("bye")
	return errors.Join(err, q.close())
}

func (j job) open(ctx context.Context, c *child) (contestant, error) {
	switch j.Queue {
	case "outbox":
		opts := outbox.Options{Concurrency: j.Slots, Logger: slog.New(slog.NewTextHandler(c, nil))}
		if j.Wake {
			opts.Wakers = []outbox.Waker{pgnotify.New(pgnotify.Options{})}
		}
		return openOursOn(ctx, j.DSN, opts, j.Conns)
	case "bare": // as many connections as we write with, and the slots divided among them
		return openBare(ctx, j.DSN, 2, j.Slots/2, true)
	case "river":
		return openRiverPgx(ctx, j.DSN, riverDefaults)
	case "river tuned":
		return openRiverPgx(ctx, j.DSN, riverFast)
	case "river sql":
		return openRiverSQL(ctx, j.DSN, riverDefaults)
	}
	return nil, fmt.Errorf("nobody is called %q", j.Queue)
}

type seen struct {
	i  int
	at time.Time
}

type child struct {
	ran, logs atomic.Int64
	news      chan struct{} // ran has changed

	mu   sync.Mutex
	out  *bufio.Writer
	runs []seen
}

// Write counts lines of the log.
func (c *child) Write(line []byte) (int, error) {
	c.logs.Add(1)
	return len(line), nil
}

func (c *child) say(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fmt.Fprintf(c.out, format+"\n", args...)
	c.out.Flush()
}

// count says how many have run, though not each by itself. It sleeps where there is nothing to say,
// for an idle process's use of the processor is measured too.
func (c *child) count(over <-chan struct{}) {
	for {
		select {
		case <-c.news:
			c.say("n %d", c.ran.Load())
			time.Sleep(5 * time.Millisecond)
		case <-over:
			return
		}
	}
}

func (c *child) mark() {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	// Not u.Maxrss, which knows the parent's memory too.
	var peak int64
	if _, err := fmt.Sscanf(procLine("/proc/self/status", "VmHWM"), "%d kB", &peak); err != nil {
		peak = int64(u.Maxrss)
	}
	c.say("mark %d %d %d", u.Utime.Nano()+u.Stime.Nano(), peak<<10, c.logs.Load())
}

// usage is what a process has used since it began.
type usage struct {
	cpu  time.Duration
	rss  int64 // at its peak, in bytes
	logs int
}

// process is a child as its parent sees it.
type process struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	ready chan struct{}
	marks chan usage
	ran   atomic.Int64

	// when it has ended
	ended chan struct{}
	runs  []seen
	err   error
}

// spawn starts a child and waits until it is ready.
func spawn(ctx context.Context, j job) (*process, error) {
	config, err := json.Marshal(j)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &process{
		cmd: exec.CommandContext(ctx, self), ready: make(chan struct{}), marks: make(chan usage, 1),
		ended: make(chan struct{}),
	}
	p.cmd.Env = append(os.Environ(), childEnv+"="+string(config))
	p.cmd.Stderr = os.Stderr
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go p.listen(out)
	select {
	case <-p.ready:
		return p, nil
	case <-p.ended:
		return nil, fmt.Errorf("child process: %w", p.err)
	}
}

func (p *process) listen(out io.Reader) {
	defer close(p.ended)
	bye := false
	for lines := bufio.NewScanner(out); lines.Scan(); {
		word, rest, _ := strings.Cut(lines.Text(), " ")
		numbers := make([]int64, 0, 3)
		for f := range strings.FieldsSeq(rest) {
			n, err := strconv.ParseInt(f, 10, 64)
			if err != nil {
				p.err = fmt.Errorf("it said %q", lines.Text())
				return
			}
			numbers = append(numbers, n)
		}
		switch word {
		case "ready":
			close(p.ready)
		case "n":
			p.ran.Store(numbers[0])
		case "run":
			p.runs = append(p.runs, seen{int(numbers[0]), time.Unix(0, numbers[1])})
		case "mark":
			p.marks <- usage{time.Duration(numbers[0]), numbers[1], int(numbers[2])}
		case "bye":
			bye = true
		}
	}
	p.err = p.cmd.Wait()
	if p.err == nil && !bye {
		p.err = errors.New("it ended without a word")
	}
}

// begin lets it dispatch.
func (p *process) begin() error { return p.tell("go") }

// usage asks what it has used so far.
func (p *process) usage() (usage, error) {
	if err := p.tell("mark"); err != nil {
		return usage{}, err
	}
	select {
	case u := <-p.marks:
		return u, nil
	case <-p.ended:
		return usage{}, fmt.Errorf("child process: %w", p.err)
	}
}

func (p *process) tell(command string) error {
	_, err := fmt.Fprintln(p.in, command)
	return err
}

// end lets it finish; then runs is complete.
func (p *process) end() (usage, error) {
	if err := p.in.Close(); err != nil {
		return usage{}, err
	}
	<-p.ended
	if p.err != nil {
		return usage{}, fmt.Errorf("child process: %w", p.err)
	}
	return <-p.marks, nil
}
