package testdb

import (
	"bufio"
	_ "embed"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// bouncerSupervisor owns the pooler, as cluster.sh owns PostgreSQL's server.
//
//go:embed pgbouncer.sh
var bouncerSupervisor string

var errNoPgBouncer = fmt.Errorf("PgBouncer is %w: put pgbouncer on PATH (Debian: apt-get install pgbouncer)", errNotInstalled)

// PgBouncer starts a pooler in front of this server, from the installed program, and returns a DSN
// for the pooler. The pooler ends with the test. Settings are lines of pgbouncer.ini, such as
// "pool_mode = transaction". Without the program the test is skipped, or fails when the environment
// variable CI is not empty.
func (c *Cluster) PgBouncer(settings ...string) string {
	c.t.Helper()
	program, err := exec.LookPath("pgbouncer")
	if err != nil {
		if program, err = exec.LookPath("/usr/sbin/pgbouncer"); err != nil { // Debian's is off users' PATH
			unavailable(c.t, errNoPgBouncer)
		}
	}
	fatal := func(err error) {
		c.t.Helper()
		if err != nil {
			c.t.Fatalf("testdb: start PgBouncer: %v", err)
		}
	}
	u, err := url.Parse(c.dsn)
	fatal(err)
	port, err := freePort()
	fatal(err)
	cmd := exec.Command("/bin/sh", append([]string{"-c", bouncerSupervisor, "outbox-pgbouncer", program, os.TempDir(), fmt.Sprint(port), u.Port()},
		settings...)...)
	cmd.Dir = "/"
	control, err := cmd.StdinPipe()
	fatal(err)
	answers, err := cmd.StdoutPipe()
	fatal(err)
	fatal(detach(cmd))
	fatal(cmd.Start())
	c.t.Cleanup(func() {
		if err := errors.Join(control.Close(), cmd.Wait()); err != nil {
			c.t.Errorf("testdb: end PgBouncer: %v", err)
		}
	})
	password, _ := u.User.Password()
	_, err = fmt.Fprintln(control, password)
	fatal(err)
	dir, err := bufio.NewReader(answers).ReadString('\n')
	fatal(err)
	u.Host = fmt.Sprintf("127.0.0.1:%d", port)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for limit := time.Now().Add(60 * time.Second); ; <-tick.C {
		conn, err := net.Dial("tcp", u.Host)
		if err == nil {
			fatal(conn.Close())
			return u.String()
		}
		if time.Now().After(limit) {
			log, _ := os.ReadFile(filepath.Join(strings.TrimSpace(dir), "log"))
			c.t.Fatalf("testdb: start PgBouncer: %v; its log:\n%s", err, log)
		}
	}
}
