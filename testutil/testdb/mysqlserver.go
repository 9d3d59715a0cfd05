package testdb

import (
	"bufio"
	"crypto/rand"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// mysqlSupervisor owns the server, as cluster.sh does PostgreSQL's.
//
//go:embed mysql.sh
var mysqlSupervisor string

// MySQLServer is a throwaway MariaDB server of its own: for tests that stop the server.
type MySQLServer struct {
	t        testing.TB
	process  *exec.Cmd
	control  *os.File // the input of the supervisor: its end, with this process, ends the server
	answers  *os.File
	lines    *bufio.Reader
	dir      string
	port     int
	password string
	pid      int
}

// StartMySQL starts a MariaDB server from installed programs and removes it when the test ends. Settings are arguments of
// mariadbd, such as "--innodb-flush-log-at-trx-commit=2"; they come after the helper's own, which turn durability off. Without
// installed programs the test is skipped, or fails when the environment variable CI is not empty; OUTBOX_TEST_MYSQL, which names
// a server that others use, plays no part.
func StartMySQL(t testing.TB, settings ...string) *MySQLServer {
	t.Helper()
	s, err := startMySQLServer(settings)
	if err != nil {
		unavailable(t, err)
	}
	s.t = t
	t.Cleanup(func() {
		if err := s.close(); err != nil {
			t.Errorf("testdb: %v", err)
		}
	})
	if err := execMySQL(s.dsn(""), "CREATE DATABASE app CHARACTER SET utf8mb4"); err != nil {
		t.Fatalf("testdb: create database: %v", err)
	}
	return s
}

// DSN names an empty database on the server, the same after every start, with parseTime=true and loc=UTC. Its user may do all.
func (s *MySQLServer) DSN() string { return s.dsn("app?charset=utf8mb4&parseTime=true&loc=UTC") }

func (s *MySQLServer) dsn(rest string) string {
	return fmt.Sprintf("outbox:%s@tcp(127.0.0.1:%d)/%s", s.password, s.port, rest)
}

// Crash kills the server, from which the next start recovers.
func (s *MySQLServer) Crash() {
	s.t.Helper()
	p, err := os.FindProcess(s.pid)
	if err == nil {
		err = p.Kill()
	}
	if err != nil {
		s.t.Fatalf("testdb: kill MariaDB: %v", err)
	}
}

// Start starts a stopped server on its old port and returns when it accepts connections.
func (s *MySQLServer) Start() {
	s.t.Helper()
	if err := s.start(); err != nil {
		s.t.Fatalf("testdb: %v", err)
	}
}

func startMySQLServer(settings []string) (*MySQLServer, error) {
	install, err := exec.LookPath("mariadb-install-db")
	if err != nil {
		return nil, errNoMySQL
	}
	server, err := exec.LookPath("mariadbd")
	if err != nil {
		if server, err = exec.LookPath("/usr/sbin/mariadbd"); err != nil { // Debian's is off the PATH of users
			return nil, errNoMySQL
		}
	}
	input, control, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	answers, output, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, input.Close(), control.Close())
	}
	cmd := exec.Command("/bin/sh", append([]string{"-c", mysqlSupervisor, "outbox-mysql", install, server, os.TempDir()}, settings...)...)
	cmd.Dir = "/"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = input, output, output
	if err = detach(cmd); err == nil {
		err = cmd.Start()
	}
	_, _ = input.Close(), output.Close()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start MariaDB's supervisor: %w", err), control.Close(), answers.Close())
	}
	s := &MySQLServer{process: cmd, control: control, answers: answers, lines: bufio.NewReader(answers), password: rand.Text()}
	if s.dir, err = s.line(); err != nil || !filepath.IsAbs(s.dir) {
		return nil, errors.Join(fmt.Errorf("make MariaDB's directory: %s", s.dir), err, s.close())
	}
	answer, err := s.line()
	if err == nil && answer != "ok" {
		err = errors.New("mariadb-install-db: " + answer)
	}
	if err == nil {
		s.port, err = freePort()
	}
	if err != nil {
		err = s.failed(err)
	} else {
		err = s.start()
	}
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// close ends the supervisor, and with it the server, and waits for both.
func (s *MySQLServer) close() error {
	err := errors.Join(s.control.Close(), s.process.Wait(), s.answers.Close())
	if err != nil {
		return fmt.Errorf("end MariaDB: %w", err)
	}
	return nil
}

func (s *MySQLServer) failed(err error) error {
	log, _ := os.ReadFile(filepath.Join(s.dir, "log"))
	return fmt.Errorf("start MariaDB: %w; the end of its log:\n%s", err, log[max(0, len(log)-4096):])
}

func (s *MySQLServer) line() (string, error) {
	if err := s.answers.SetReadDeadline(time.Now().Add(90 * time.Second)); err != nil {
		return "", err
	}
	text, err := s.lines.ReadString('\n')
	return strings.TrimSuffix(text, "\n"), err
}

// start has the supervisor start the server, after the end of an earlier one, and waits until it answers.
func (s *MySQLServer) start() error {
	if _, err := fmt.Fprintln(s.control, "start", s.port, s.password); err != nil {
		return s.failed(err)
	}
	pid, err := s.line()
	if err == nil {
		s.pid, err = strconv.Atoi(pid)
	}
	if err != nil {
		return s.failed(err)
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for limit := time.Now().Add(60 * time.Second); ; <-tick.C {
		if err := execMySQL(s.dsn(""), "SELECT 1"); err == nil || time.Now().After(limit) {
			if err != nil {
				err = s.failed(err)
			}
			return err
		}
	}
}
