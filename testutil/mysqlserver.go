package testutil

import (
	"bufio"
	"crypto/rand"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// mysqlSupervisor owns the server, as cluster.sh does PostgreSQL's.
//
//go:embed mysql.sh
var mysqlSupervisor string

// mysqlControl is the input of the supervisor: its end, with this process, ends the server.
var mysqlControl *os.File

// startMySQL starts the server that the tests of this binary share.
func startMySQL() (string, error) {
	install, err := exec.LookPath("mariadb-install-db")
	if err != nil {
		return "", errNoMySQL
	}
	server, err := exec.LookPath("mariadbd")
	if err != nil {
		if server, err = exec.LookPath("/usr/sbin/mariadbd"); err != nil { // Debian's is off the PATH of users
			return "", errNoMySQL
		}
	}
	input, control, err := os.Pipe()
	if err != nil {
		return "", err
	}
	answers, output, err := os.Pipe()
	if err != nil {
		return "", errors.Join(err, input.Close(), control.Close())
	}
	cmd := exec.Command("/bin/sh", "-c", mysqlSupervisor, "outbox-mysql", install, server, os.TempDir())
	cmd.Dir = "/"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = input, output, output
	if err = detach(cmd); err == nil {
		err = cmd.Start()
	}
	_, _ = input.Close(), output.Close()
	if err != nil {
		return "", errors.Join(fmt.Errorf("start MariaDB's supervisor: %w", err), control.Close(), answers.Close())
	}
	go func() { _ = cmd.Wait() }()
	mysqlControl = control
	lines := bufio.NewReader(answers)
	line := func() (string, error) {
		if err := answers.SetReadDeadline(time.Now().Add(90 * time.Second)); err != nil {
			return "", err
		}
		s, err := lines.ReadString('\n')
		return strings.TrimSuffix(s, "\n"), err
	}
	dir, err := line()
	if err != nil || !filepath.IsAbs(dir) {
		return "", errors.Join(fmt.Errorf("make MariaDB's directory: %s", dir), err, control.Close())
	}
	failed := func(err error) error {
		log, _ := os.ReadFile(filepath.Join(dir, "log"))
		return errors.Join(fmt.Errorf("start MariaDB: %w; the end of its log:\n%s", err, log[max(0, len(log)-4096):]), control.Close())
	}
	if answer, err := line(); err != nil || answer != "ok" {
		return "", failed(errors.Join(errors.New("mariadb-install-db: "+answer), err))
	}
	port, err := freePort()
	if err != nil {
		return "", failed(err)
	}
	password := rand.Text()
	if _, err := fmt.Fprintln(control, "start", port, password); err != nil {
		return "", failed(err)
	}
	if _, err := line(); err != nil {
		return "", failed(err)
	}
	dsn := fmt.Sprintf("outbox:%s@tcp(127.0.0.1:%d)/", password, port)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for limit := time.Now().Add(60 * time.Second); ; <-tick.C {
		err := execMySQL(dsn, "SELECT 1")
		if err == nil {
			return dsn, nil
		}
		if time.Now().After(limit) {
			return "", failed(err)
		}
	}
}
