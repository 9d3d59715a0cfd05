package scenarios_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
)

// beside is what the README's program gets beside it: another database, and a way to hold the only
// connection of its pool.
const beside = `package main

import (
	"bufio"
	"context"
	"fmt"
	"log"
	"os"

	"gorm.io/driver/mysql"
	"gorm.io/driver/postgres"
	"gorm.io/driver/sqlite"
	"gorm.io/gorm"
)

func database() gorm.Dialector {
	dsn := os.Getenv("` + dsnEnv + `")
	switch os.Getenv("` + databaseEnv + `") {
	case "sqlite":
		return sqlite.Open(dsn)
	case "postgres":
		return postgres.Open(dsn)
	}
	return mysql.Open(dsn)
}

func opened(db *gorm.DB) {
	pool, err := db.DB()
	if err != nil {
		log.Fatal(err)
	}
	hold := func() {
		pool.SetMaxOpenConns(1)
		if _, err := pool.Conn(context.Background()); err != nil {
			log.Fatal(err)
		}
		fmt.Println("holds")
	}
	if os.Getenv("` + paramEnv + `") == "hold" {
		hold()
	}
	go func() {
		if line, _ := bufio.NewReader(os.Stdin).ReadString('\n'); line != "" {
			hold()
		}
	}()
	fmt.Println("opened")
}
`

// readmeProgram builds the README's program, but for its database.
func readmeProgram(dir string) (string, error) {
	text, err := os.ReadFile("../README.md")
	if err != nil {
		return "", err
	}
	_, program, _ := strings.Cut(string(text), "```go\npackage main\n")
	program, _, _ = strings.Cut(program, "\n```")
	before, rest, _ := strings.Cut(program, "sqlite.Open(")
	_, after, _ := strings.Cut(rest, `")`)
	program = "package main\n" + before + "database()" + after
	for _, change := range [][2]string{
		{"\t\"gorm.io/driver/sqlite\"\n", ""},
		{"\tplugin := outbox.New(outbox.Options{})\n", "\topened(db)\n\tplugin := outbox.New(outbox.Options{})\n"},
	} {
		program = strings.Replace(program, change[0], change[1], 1)
	}
	module, err := filepath.Abs("..")
	if err != nil {
		return "", err
	}
	overlay := map[string]string{}
	for name, text := range map[string]string{"main.go": program, "beside.go": beside} {
		real := filepath.Join(dir, name)
		if err := os.WriteFile(real, []byte(text), 0o600); err != nil {
			return "", err
		}
		overlay[filepath.Join(module, "internal", "readme", name)] = real
	}
	config, err := json.Marshal(map[string]any{"Replace": overlay})
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "overlay.json"), config, 0o600)
	}
	if err != nil {
		return "", err
	}
	built := filepath.Join(dir, "shop")
	build := exec.Command("go", "build", "-overlay", filepath.Join(dir, "overlay.json"), "-o", built, "./internal/readme")
	build.Dir, build.Stderr, build.Stdout = module, os.Stderr, os.Stderr
	return built, build.Run()
}

// The README's program ends soon after SIGTERM, whatever it waits for.
func TestReadmesProgramIsTerminated(t *testing.T) {
	program, err := readmeProgram(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	const opens, migrates, runs = "while it opens the database", "in Migrate", "while it runs"
	each(t, func(t *testing.T, d database, _ string) {
		for name := range d.stalls() {
			for _, when := range []string{opens, migrates, runs} {
				starved := name == "no free connection"
				if when == opens && name != "a silent server" {
					continue // the pool is the program's own, and a locked file in WAL mode can be opened
				}
				t.Run(name+"/"+when, func(t *testing.T) {
					t.Parallel()
					dsn := d.dsn(t)
					db := d.open(t, dsn, nil)
					dbtest.Install(t, db, quick(), nil)
					through, param := dsn, ""
					var px *proxy
					silent := make(chan struct{})
					lock := func() {
						holder, err := sql.Open(d.driver, dsn)
						if err != nil {
							t.Fatal(err)
						}
						t.Cleanup(func() { _ = holder.Close() })
						tx, err := holder.BeginTx(context.Background(), nil)
						if err != nil {
							t.Fatal(err)
						}
						t.Cleanup(func() { _ = tx.Rollback() })
					}
					switch {
					case name == "a silent server":
						px, through = startProxy(t, d, dsn)
						switch when {
						case opens:
							px.silence()
						case migrates:
							px.set(func(statement string) action {
								if begin := d.word("begin"); !strings.HasPrefix(strings.ToLower(statement), begin) {
									return pass
								}
								px.mute = true
								close(silent)
								return hole
							})
						}
					case starved && when == migrates:
						param = "hold"
					case name == "a locked file" && when != runs:
						lock()
					}
					cmd := exec.Command(program)
					cmd.Dir = t.TempDir()
					cmd.Env = append(os.Environ(), databaseEnv+"="+d.name, dsnEnv+"="+through, paramEnv+"="+param)
					c := startChild(t, cmd, "of the README")
					if when != opens {
						c.says(t, "opened")
					}
					switch {
					case when == runs:
						dbtest.Eventually(t, "it runs", func() bool { return dbtest.Count(t, db, &outbox.ProcessModel{}) > 0 })
						switch {
						case px != nil:
							px.silence()
						case starved:
							c.letGo()
							c.says(t, "holds")
						default:
							lock()
						}
					case when == migrates && px != nil:
						dbtest.Receive(t, silent)
					}
					<-time.After(300 * time.Millisecond) // so that it waits
					c.signal(t, syscall.SIGTERM)
					begun := time.Now()
					select {
					case <-c.ended:
						status := c.wait()
						killed := status.Signaled() && status.Signal() == syscall.SIGTERM
						failed := status.ExitStatus() == 1 && strings.Contains(c.complaints.String(), "outbox: migrate: ")
						if ended := map[string]bool{opens: killed, migrates: failed, runs: status.Exited() && status.ExitStatus() == 0}; !ended[when] {
							t.Errorf("it ended with %v", c.ProcessState)
						}
						t.Logf("after %v: %v %s", time.Since(begun).Round(100*time.Millisecond), c.ProcessState, c.complaints.String())
					case <-time.After(soon):
						t.Errorf("it goes on %v after SIGTERM", soon)
					}
				})
			}
		}
	})
}
