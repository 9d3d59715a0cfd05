package scenarios_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
)

// A child process is this test binary again, with a role. It says on its standard output what it
// does, and its parent lets it go on through its standard input, at whose end it dies: signs
// through the database would have to wait for locks.
const (
	roleEnv     = "OUTBOX_FAULTS_ROLE"
	databaseEnv = "OUTBOX_FAULTS_DATABASE"
	dsnEnv      = "OUTBOX_FAULTS_DSN"
	paramEnv    = "OUTBOX_FAULTS_PARAM"
)

// self is what a role sees of itself.
type self struct {
	db    *gorm.DB
	tap   *tap
	param string
	told  <-chan struct{} // closed when the parent says so
}

// roles by name; what they return is told, and makes the exit status 1.
var roles = map[string]func(*self) error{}

func childMain(role string) int {
	told := make(chan struct{})
	go func() {
		if line, _ := bufio.NewReader(os.Stdin).ReadString('\n'); line == "" {
			die() // the parent is gone
		}
		close(told)
	}()
	tp := &tap{}
	db, _, err := named(os.Getenv(databaseEnv)).connect(os.Getenv(dsnEnv), tp)
	if err == nil {
		err = roles[role](&self{db, tp, os.Getenv(paramEnv), told})
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "child %s: %v\n", role, err)
		return 1
	}
	return 0
}

// say tells the parent something.
func say(words ...any) { fmt.Println(words...) }

// dispatch runs a plugin in a child.
func (s *self) dispatch(ctx context.Context, opts outbox.Options, setup func(*outbox.Plugin)) error {
	p := outbox.New(opts)
	setup(p)
	if err := s.db.Use(p); err != nil {
		return err
	}
	return p.Run(ctx)
}

// die is kill -9: nothing is cleaned up.
func die() {
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

// child is a process that plays a role.
type child struct {
	*exec.Cmd
	input      io.Writer
	lines      chan string
	complaints strings.Builder // to be read when it has ended
	ended      chan struct{}
}

func spawn(t testing.TB, d database, dsn, role, param string) *child {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleEnv+"="+role, databaseEnv+"="+d.name, dsnEnv+"="+dsn, paramEnv+"="+param)
	return startChild(t, cmd, role+" "+param)
}

// startChild starts a program, which is killed when the test ends.
func startChild(t testing.TB, cmd *exec.Cmd, name string) *child {
	t.Helper()
	c := &child{Cmd: cmd, lines: make(chan string, 10_000), ended: make(chan struct{})}
	cmd.Stderr = &c.complaints
	input, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	output, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c.input = input
	go func() {
		for s := bufio.NewScanner(output); s.Scan(); {
			c.lines <- s.Text()
		}
		close(c.lines)
		_ = cmd.Wait()
		close(c.ended)
	}()
	t.Cleanup(func() {
		c.signal(t, syscall.SIGKILL)
		c.wait()
		if t.Failed() {
			t.Logf("child %s: %v\n%.4000s", name, c.ProcessState, c.complaints.String())
		}
	})
	return c
}

// wait returns when the child has ended, however it did.
func (c *child) wait() syscall.WaitStatus {
	<-c.ended
	return c.ProcessState.Sys().(syscall.WaitStatus)
}

func (c *child) signal(t testing.TB, s syscall.Signal) {
	t.Helper()
	if err := c.Process.Signal(s); err != nil && s != syscall.SIGKILL {
		t.Fatal(err)
	}
}

// freeze returns when every thread of it stands still; until then one may still take a lock. It
// happens in a transaction of ours, so that it does not have SQLite's write lock when it stops.
func (c *child) freeze(t testing.TB, db *gorm.DB) {
	t.Helper()
	err := db.Transaction(func(*gorm.DB) error {
		c.signal(t, syscall.SIGSTOP)
		if runtime.GOOS == "linux" {
			dbtest.Eventually(t, "it stands still", func() bool {
				threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", c.Process.Pid))
				return err == nil && !slices.ContainsFunc(threads, func(path string) bool {
					stat, err := os.ReadFile(path)
					return err == nil && !strings.Contains(string(stat), ") T ")
				})
			})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (c *child) letGo() { _, _ = io.WriteString(c.input, "go\n") }

// says waits until the child says this.
func (c *child) says(t testing.TB, want string) {
	t.Helper()
	for {
		line := dbtest.Receive(t, c.lines)
		switch line {
		case want:
			return
		case "":
			t.Fatalf("the child has ended without having said %q", want)
		}
	}
}
