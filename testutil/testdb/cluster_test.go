//go:build unix

package testdb_test

import (
	"bufio"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"gorm.io/driver/postgres"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-outbox/outbox/testutil/testdb"
)

func TestCluster(t *testing.T) {
	t.Parallel()
	c := testdb.StartPostgres(t, "synchronous_commit = on", "work_mem = '5MB'")
	db := openDB(t, postgres.Open(c.DSN()))

	t.Run("settings are in force", func(t *testing.T) {
		for name, want := range map[string]string{
			"synchronous_commit": "on", "work_mem": "5MB", // the test's
			"fsync": "off", "max_connections": "200", "TimeZone": "Asia/Kolkata", "server_encoding": "UTF8", // the helper's
		} {
			if got := scalar[string](t, db, "SELECT current_setting(?)", name); got != want {
				t.Errorf("%s = %s, want %s", name, got, want)
			}
		}
	})

	t.Run("strangers are turned away", func(t *testing.T) {
		u, err := url.Parse(c.DSN())
		if err != nil {
			t.Fatal(err)
		}
		u.User = url.UserPassword("postgres", "guess")
		if _, err := gorm.Open(postgres.Open(u.String()), &gorm.Config{Logger: logger.Discard}); err == nil {
			t.Error("the server took a wrong password")
		}
	})

	for _, mode := range []string{"smart", "fast", "immediate"} {
		t.Run("committed rows outlive stop "+mode, func(t *testing.T) {
			table := "before_" + mode
			mustExec(t, db, "CREATE TABLE "+table+" (id int)")
			if mode == "smart" {
				pool(t, db).SetMaxIdleConns(-1) // it waits for clients to leave
			}
			c.Stop(mode)
			if listens(t, c.DSN()) {
				t.Error("the server accepts connections after Stop")
			}
			c.Start()
			if db := openDB(t, postgres.Open(c.DSN())); !db.Migrator().HasTable(table) {
				t.Errorf("%s is lost", table)
			}
		})
	}
}

// kind of throwaway server: where its data and the number of its process are.
type kind struct {
	name, data, pid string
	dsn             func(testing.TB) string
}

var kinds = []kind{
	{"postgres", "outbox-pg-*/data", "outbox-pg-*/data/postmaster.pid", testdb.PostgresDSN},
	{"mariadb", "outbox-my-*/data", "outbox-my-*/pid", testdb.MariaDBDSN},
	{"mysql", "outbox-my-*/data", "outbox-my-*/pid", testdb.MySQLDSN},
}

// TestClusterEnds has a test binary, this one, go away in every way that leaves it no time to clean
// up.
func TestClusterEnds(t *testing.T) {
	t.Parallel()
	testdb.StartPostgres(t) // skips where nothing is installed
	ends(t, kinds[0])
}

func TestMariaDBServerEnds(t *testing.T) {
	t.Parallel()
	testdb.StartMariaDB(t)
	ends(t, kinds[1])
}

func TestMySQLServerEnds(t *testing.T) {
	t.Parallel()
	testdb.StartMySQL(t)
	ends(t, kinds[2])
}

func ends(t *testing.T, kind kind) {
	for _, tt := range []struct {
		name string
		end  func(*testing.T, *child)
	}{
		{"when the test binary is killed", func(t *testing.T, c *child) {
			c.dsn(t)
			c.kill(t)
		}},
		{"when the test binary exits", func(t *testing.T, c *child) {
			c.dsn(t)
			if err := c.stdin.Close(); err != nil { // that's what it waits for
				t.Fatal(err)
			}
		}},
		{"when the test binary is killed while the server is paused", func(t *testing.T, c *child) {
			c.dsn(t)
			if err := syscall.Kill(c.server(t), syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			c.kill(t)
		}},
		{"when the test binary is killed while the server starts", func(t *testing.T, c *child) {
			eventually(t, "its directory exists", func() bool { return c.glob(t, kind.data) != "" })
			c.kill(t)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := startChild(t, kind)
			tt.end(t, c)
			_ = c.cmd.Wait() // by a signal, mostly
			eventually(t, "directory removed", func() bool { return c.glob(t, "*") == "" })
			if c.url != "" && listens(t, c.url) {
				t.Error("the server still accepts connections")
			}
			if c.pid != 0 && running(c.pid) {
				t.Error("the server's process still runs")
			}
		})
	}
}

// TestChild is what ends starts.
func TestChild(t *testing.T) {
	i := slices.IndexFunc(kinds, func(k kind) bool { return k.name == os.Getenv("OUTBOX_TEST_CHILD") })
	if i < 0 {
		t.Skip("for TestClusterEnds and its like")
	}
	fmt.Println("dsn", kinds[i].dsn(t))
	_, _ = os.Stdin.Read(make([]byte, 1))
	os.Exit(3)
}

// child is a test binary that has started a server, with a directory for temporary files of its
// own.
type child struct {
	kind   kind
	cmd    *exec.Cmd
	stdin  interface{ Close() error }
	stdout *bufio.Scanner
	tmp    string
	url    string
	pid    int // of the server
}

func startChild(t *testing.T, kind kind) *child {
	t.Helper()
	// Not t.TempDir, which is closed to other users and too long for a socket.
	tmp := tempDir(t, "outbox-test-*")
	if err := os.Chmod(tmp, 0o777); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestChild$")
	env := os.Environ()
	for _, server := range []string{"POSTGRES", "MARIADB", "MYSQL"} {
		env = without(env, "OUTBOX_TEST_"+server)
	}
	cmd.Env = append(env, "OUTBOX_TEST_CHILD="+kind.name, "TMPDIR="+tmp)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	return &child{kind: kind, cmd: cmd, stdin: stdin, stdout: bufio.NewScanner(stdout), tmp: tmp}
}

// dsn waits until the child has its database.
func (c *child) dsn(t *testing.T) {
	t.Helper()
	var lines []string
	for c.stdout.Scan() {
		if dsn, ok := strings.CutPrefix(c.stdout.Text(), "dsn "); ok {
			c.url = dsn
			if !listens(t, dsn) {
				t.Fatal("the server does not accept connections")
			}
			c.pid = c.server(t)
			return
		}
		lines = append(lines, c.stdout.Text())
	}
	t.Fatalf("the child said:\n%s", strings.Join(lines, "\n"))
}

// server reads the number of the server's process.
func (c *child) server(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile(c.glob(t, c.kind.pid))
	if err != nil {
		t.Fatal(err)
	}
	line, _, _ := strings.Cut(string(b), "\n")
	pid, err := strconv.Atoi(line)
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func (c *child) kill(t *testing.T) {
	t.Helper()
	if err := c.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
}

// glob returns the first match among the child's temporary files.
func (c *child) glob(t *testing.T, pattern string) string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(c.tmp, pattern))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(names[:min(1, len(names))], "")
}

// running tells whether a process is there and not merely waiting for its parent, where the system
// shows that.
func running(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

func listens(t *testing.T, dsn string) bool {
	t.Helper()
	_, host, _ := strings.Cut(dsn, "@tcp(") // the Go driver's form for MySQL
	host, _, ok := strings.Cut(host, ")")
	if !ok {
		u, err := url.Parse(dsn)
		if err != nil {
			t.Fatal(err)
		}
		host = u.Host
	}
	conn, err := net.Dial("tcp", host)
	if err == nil {
		_ = conn.Close()
	}
	return err == nil
}
