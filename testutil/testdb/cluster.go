package testdb

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/rand"
	_ "embed"
	"errors"
	"fmt"
	randv2 "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// supervisor is the program that owns the server. It must outlive the test binary, which may be
// killed, so it is another process. It is a shell script, because every machine has a shell.
//
//go:embed cluster.sh
var supervisor string

// errNotInstalled is the only reason to skip a test.
var errNotInstalled = errors.New("not installed")

var errNoPostgres = fmt.Errorf("PostgreSQL is %w: set "+postgresEnv+
	" to the DSN of a server, or put its programs initdb, pg_ctl and postgres on PATH (Debian: apt-get install postgresql)", errNotInstalled)

// throwaway is the configuration of a cluster. Durability costs time and protects only against a
// crash of the machine. The time zone is unusual, to find code that mistakes the session's time
// zone for the process's or for UTC.
var throwaway = []string{
	"listen_addresses = '127.0.0.1'",
	"max_connections = 200",
	"fsync = off",
	"synchronous_commit = off",
	"full_page_writes = off",
	"timezone = 'Asia/Kolkata'",
	"log_timezone = 'UTC'",
}

// Cluster is a PostgreSQL server for one test, which may stop and start it. Its methods are safe
// for concurrent use. But they may fail the test, so call them only in the test's own goroutine.
type Cluster struct {
	t   testing.TB // nil for the cluster that tests share
	dir string
	dsn string

	mu      sync.Mutex
	port    int
	process *exec.Cmd
	control *os.File // the server ends when it is closed or this process dies
	answers *os.File
	lines   *bufio.Reader
}

// StartPostgres starts a cluster from installed programs and removes it when the test ends.
// Settings are lines of postgresql.conf, such as "fsync = on". They come after the helper's own
// settings, which turn durability off. Without installed programs the test is skipped, or fails
// when the environment variable CI is not empty. OUTBOX_TEST_POSTGRES names a server that other
// tests use, so it has no effect here.
func StartPostgres(t testing.TB, settings ...string) *Cluster {
	t.Helper()
	c, err := startCluster(settings)
	if err != nil {
		unavailable(t, err)
	}
	c.t = t
	t.Cleanup(func() {
		if err := c.close(); err != nil {
			t.Errorf("testdb: %v", err)
		}
	})
	return c
}

// DSN is a URL with the server's address on 127.0.0.1. It is the same after every start. Its user
// is a superuser.
func (c *Cluster) DSN() string { return c.dsn }

// Stop stops the server and returns when it is down. The mode is one of pg_ctl's: "smart" waits for
// clients to leave, "fast" disconnects them, "immediate" is a crash from which the next start
// recovers.
func (c *Cluster) Stop(mode string) {
	c.t.Helper()
	if err := c.command("stop", mode); err != nil {
		c.t.Fatalf("testdb: %v", err)
	}
}

// Start starts a stopped server on its old port and returns when it accepts connections.
func (c *Cluster) Start() {
	c.t.Helper()
	if err := c.command("start", strconv.Itoa(c.port)); err != nil {
		c.t.Fatalf("testdb: %v", err)
	}
}

func startCluster(settings []string) (*Cluster, error) {
	bin, err := postgresPrograms()
	if err != nil {
		return nil, err
	}
	// Every user of the machine can reach the server's address, and a superuser may run programs.
	password := rand.Text()
	c, err := supervise(bin, password, append(slices.Clone(throwaway), settings...))
	if err != nil {
		return nil, err
	}
	for range 3 { // another process may take the port before the server does
		if c.port, err = freePort(); err != nil {
			break
		}
		if err = c.command("start", strconv.Itoa(c.port)); err == nil {
			c.dsn = fmt.Sprintf("postgres://postgres:%s@127.0.0.1:%d/postgres?sslmode=disable", password, c.port)
			return c, nil
		}
	}
	return nil, errors.Join(err, c.close())
}

// supervise starts the supervisor and waits until it has created a cluster.
func supervise(bin, password string, settings []string) (_ *Cluster, err error) {
	input, control, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start PostgreSQL's supervisor: %w", err)
	}
	answers, output, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start PostgreSQL's supervisor: %w", err), input.Close(), control.Close())
	}
	cmd := exec.Command("/bin/sh", append([]string{"-c", supervisor, "outbox-postgres", bin, os.TempDir()}, settings...)...)
	cmd.Dir = "/" // another user may not have access to the current directory
	// Not the test's own output: `go test` waits until every process that holds it has ended.
	cmd.Stdin, cmd.Stdout, cmd.Stderr = input, output, output
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "PG") })
	cmd.Env = append(cmd.Env, "LC_ALL=C")
	err = detach(cmd)
	if err == nil {
		err = cmd.Start()
	}
	_, _ = input.Close(), output.Close()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start PostgreSQL's supervisor: %w", err), control.Close(), answers.Close())
	}

	c := &Cluster{process: cmd, control: control, answers: answers, lines: bufio.NewReader(answers)}
	if c.dir, err = c.line(); err == nil && !filepath.IsAbs(c.dir) {
		err = errors.New(c.dir) // the error message of mktemp
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make PostgreSQL's directory: %w", err), c.close())
	}
	if err := c.command("init", password); err != nil {
		return nil, errors.Join(err, c.close())
	}
	return c, nil
}

// command sends the supervisor a command and waits until it is done.
func (c *Cluster) command(name, arg string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := fmt.Fprintln(c.control, name, arg)
	if err == nil {
		var answer string
		if answer, err = c.line(); err == nil && answer != "ok" {
			err = errors.New(answer)
		}
	}
	if err != nil {
		return fmt.Errorf("%s PostgreSQL: %w; the end of its log:\n%s", name, err, c.logTail())
	}
	return nil
}

func (c *Cluster) line() (string, error) {
	// Longer than the minute that the supervisor allows pg_ctl.
	if err := c.answers.SetReadDeadline(time.Now().Add(90 * time.Second)); err != nil {
		return "", err
	}
	s, err := c.lines.ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("read supervisor's answer: %w", err)
	}
	return strings.TrimSuffix(s, "\n"), nil
}

func (c *Cluster) logTail() []byte {
	log, err := os.ReadFile(filepath.Join(c.dir, "log"))
	if err != nil {
		return []byte(err.Error())
	}
	if n := len(log) - 4096; n > 0 {
		log = log[n:]
	}
	return bytes.TrimSpace(log)
}

// close ends the server and removes its directory.
func (c *Cluster) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.control.Close()
	if waitErr := c.process.Wait(); waitErr != nil {
		err = errors.Join(err, fmt.Errorf("end PostgreSQL's supervisor: %w", waitErr))
	}
	return errors.Join(err, c.answers.Close())
}

// postgresPrograms finds the directory of the server's programs: the one on PATH, or else the
// newest of Debian's, which Debian does not put on PATH.
func postgresPrograms() (string, error) {
	if path, err := exec.LookPath("pg_ctl"); err == nil {
		if path, err = filepath.EvalSymlinks(path); err == nil && hasPrograms(filepath.Dir(path)) {
			return filepath.Dir(path), nil
		}
	}
	return newestPrograms("/usr/lib/postgresql/*/bin")
}

// newestPrograms returns the newest of the directories. Their parents are named after the version.
func newestPrograms(pattern string) (string, error) {
	dirs, err := filepath.Glob(pattern)
	if err != nil {
		return "", err
	}
	dirs = slices.DeleteFunc(dirs, func(dir string) bool { return !hasPrograms(dir) })
	if len(dirs) == 0 {
		return "", errNoPostgres
	}
	version := func(dir string) float64 {
		v, _ := strconv.ParseFloat(filepath.Base(filepath.Dir(dir)), 64) // 0 if it is not a version
		return v
	}
	return slices.MaxFunc(dirs, func(a, b string) int { return cmp.Compare(version(a), version(b)) }), nil
}

func hasPrograms(dir string) bool {
	return !slices.ContainsFunc([]string{"initdb", "pg_ctl", "postgres"}, func(name string) bool {
		_, err := exec.LookPath(filepath.Join(dir, name))
		return err != nil
	})
}

// freePort finds a port below the ports that the kernel uses for outgoing connections. While a
// server is stopped, a client may keep trying to reach it. The client must not take the server's
// port, or even connect to itself.
func freePort() (int, error) {
	var err error
	for range 100 {
		port := 12000 + randv2.IntN(20000)
		var l net.Listener
		if l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			return port, l.Close()
		}
	}
	return 0, fmt.Errorf("find a free port: %w", err)
}
