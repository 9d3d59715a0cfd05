package testdb

import (
	"bufio"
	"bytes"
	"crypto/rand"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// mysqlSupervisor owns the server, as cluster.sh owns PostgreSQL's.
//
//go:embed mysql.sh
var mysqlSupervisor string

// mysqlKind has the differences between servers that speak MySQL's protocol.
type mysqlKind struct {
	name, env string
	// programs finds what mysql.sh needs: the program that creates a data directory or a directory
	// to copy, and the server's program.
	programs func() (install, server string, err error)
	// shared is the server that the tests of this binary share.
	shared func() (*MySQLServer, error)
}

var (
	mariaDB   = newMySQLKind("mariadb", "OUTBOX_TEST_MARIADB", mariaDBPrograms)
	realMySQL = newMySQLKind("mysql", "OUTBOX_TEST_MYSQL", mysqlPrograms)
)

func newMySQLKind(name, env string, programs func() (string, string, error)) *mysqlKind {
	k := &mysqlKind{name: name, env: env, programs: programs}
	k.shared = sync.OnceValues(func() (*MySQLServer, error) { return k.start(nil) })
	return k
}

var errNoMariaDB = fmt.Errorf("MariaDB is %w: set OUTBOX_TEST_MARIADB to the DSN of a server, or put the programs mariadbd and"+
	" mariadb-install-db on PATH (Debian: apt-get install mariadb-server)", errNotInstalled)

func mariaDBPrograms() (install, server string, err error) {
	if install, err = exec.LookPath("mariadb-install-db"); err != nil {
		return "", "", errNoMariaDB
	}
	if server, err = exec.LookPath("mariadbd"); err != nil {
		if server, err = exec.LookPath("/usr/sbin/mariadbd"); err != nil { // Debian's is off users' PATH
			return "", "", errNoMariaDB
		}
	}
	return install, server, nil
}

// mysqlCache is where scripts/machine.sh puts a server: its program, and a data directory to copy,
// because the server takes seconds to create one.
const mysqlCache = "/var/cache/outbox-test/mysql"

var errNoMySQL = fmt.Errorf("MySQL is %w: set OUTBOX_TEST_MYSQL to the DSN of a server, or put the program mysqld on PATH"+
	" (Debian: as root, make test puts one into "+mysqlCache+")", errNotInstalled)

func mysqlPrograms() (template, server string, err error) {
	if server, err = exec.LookPath("mysqld"); err == nil {
		// MariaDB's program may also have this name.
		if version, err := exec.Command(server, "--no-defaults", "--version").Output(); err == nil && !bytes.Contains(version, []byte("MariaDB")) {
			return "", server, nil
		}
	}
	if server, err = exec.LookPath(mysqlCache + "/mysqld"); err != nil {
		return "", "", errNoMySQL
	}
	return mysqlCache + "/template", server, nil
}

// MySQLServer is a throwaway server of MySQL or MariaDB for one test, which may stop it.
type MySQLServer struct {
	t        testing.TB
	kind     *mysqlKind
	process  *exec.Cmd
	control  *os.File // the supervisor's input; when it ends, with this process, the server ends
	answers  *os.File
	lines    *bufio.Reader
	dir      string
	port     int
	password string
	pid      int
}

// StartMySQL starts a MySQL server and removes it when the test ends. Its program is the mysqld on
// PATH, unless that is MariaDB's, or else the one that make test has installed. Settings are
// arguments of mysqld, such as "--innodb-flush-log-at-trx-commit=2". They come after the helper's
// own settings, which turn durability off. Without a program the test is skipped, or fails when the
// environment variable CI is not empty. OUTBOX_TEST_MYSQL names a server that other tests use, so
// it has no effect here.
func StartMySQL(t testing.TB, settings ...string) *MySQLServer {
	t.Helper()
	return realMySQL.startFor(t, settings)
}

// StartMariaDB is [StartMySQL] for MariaDB, with the programs mariadbd and mariadb-install-db on
// PATH. OUTBOX_TEST_MARIADB has no effect.
func StartMariaDB(t testing.TB, settings ...string) *MySQLServer {
	t.Helper()
	return mariaDB.startFor(t, settings)
}

func (k *mysqlKind) startFor(t testing.TB, settings []string) *MySQLServer {
	t.Helper()
	s, err := k.start(settings)
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

// DSN names an empty database on the server, with parseTime=true and loc=UTC. It is the same after
// every start. Its user has all privileges.
func (s *MySQLServer) DSN() string { return s.dsn("app?charset=utf8mb4&parseTime=true&loc=UTC") }

func (s *MySQLServer) dsn(rest string) string {
	return fmt.Sprintf("outbox:%s@tcp(127.0.0.1:%d)/%s", s.password, s.port, rest)
}

// Crash kills the server. The next start recovers from that.
func (s *MySQLServer) Crash() {
	s.t.Helper()
	p, err := os.FindProcess(s.pid)
	if err == nil {
		err = p.Kill()
	}
	if err != nil {
		s.t.Fatalf("testdb: kill %s: %v", s.kind.name, err)
	}
}

// Start starts a stopped server on its old port and returns when it accepts connections.
func (s *MySQLServer) Start() {
	s.t.Helper()
	if err := s.start(); err != nil {
		s.t.Fatalf("testdb: %v", err)
	}
}

func (k *mysqlKind) start(settings []string) (*MySQLServer, error) {
	install, server, err := k.programs()
	if err != nil {
		return nil, err
	}
	input, control, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	answers, output, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, input.Close(), control.Close())
	}
	cmd := exec.Command("/bin/sh", append([]string{"-c", mysqlSupervisor, "outbox-mysql", k.name, install, server, os.TempDir()}, settings...)...)
	cmd.Dir = "/"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = input, output, output
	if err = detach(cmd); err == nil {
		err = cmd.Start()
	}
	_, _ = input.Close(), output.Close()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start the supervisor of %s: %w", k.name, err), control.Close(), answers.Close())
	}
	s := &MySQLServer{kind: k, process: cmd, control: control, answers: answers, lines: bufio.NewReader(answers), password: rand.Text()}
	if s.dir, err = s.line(); err != nil || !filepath.IsAbs(s.dir) {
		return nil, errors.Join(fmt.Errorf("make the directory of %s: %s", k.name, s.dir), err, s.close())
	}
	answer, err := s.line()
	if err == nil && answer != "ok" {
		err = errors.New("make a data directory: " + answer)
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
		return fmt.Errorf("end %s: %w", s.kind.name, err)
	}
	return nil
}

func (s *MySQLServer) failed(err error) error {
	log, _ := os.ReadFile(filepath.Join(s.dir, "log"))
	return fmt.Errorf("start %s: %w; the end of its log:\n%s", s.kind.name, err, log[max(0, len(log)-4096):])
}

func (s *MySQLServer) line() (string, error) {
	if err := s.answers.SetReadDeadline(time.Now().Add(90 * time.Second)); err != nil {
		return "", err
	}
	text, err := s.lines.ReadString('\n')
	return strings.TrimSuffix(text, "\n"), err
}

// start makes the supervisor start the server, after an earlier server has ended, and waits until
// it answers.
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
	// A node that joins a cluster receives all data before it answers.
	for limit := time.Now().Add(3 * time.Minute); ; <-tick.C {
		if err := execMySQL(s.dsn(""), "SELECT 1"); err == nil || time.Now().After(limit) {
			if err != nil {
				err = s.failed(err)
			}
			return err
		}
	}
}
