package main

import (
	"bufio"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
)

// records is the file that -json writes and -render reads.
type records struct {
	Machine machine   `json:"machine"`
	Tables  []*result `json:"tables"`
}

// machine is what was measured on. Tables of different ones are not put side by side.
type machine struct {
	CPU      string   `json:"cpu"`
	Cores    int      `json:"cores"`
	Memory   string   `json:"memory"`
	Go       string   `json:"go"`
	Postgres string   `json:"postgres"`
	SQLite   string   `json:"sqlite"`
	Modules  []string `json:"modules"`
}

// peers are the modules whose versions matter.
var peers = []string{
	"github.com/riverqueue/river", "github.com/vgarvardt/gue/v5", "maragu.dev/goqite", "github.com/hibiken/asynq",
	"github.com/jackc/pgx/v5", "gorm.io/gorm", "github.com/mattn/go-sqlite3",
}

func thisMachine(ctx context.Context, pg *server) (machine, error) {
	m := machine{
		CPU: procLine("/proc/cpuinfo", "model name"), Cores: runtime.NumCPU(), Memory: procLine("/proc/meminfo", "MemTotal"),
		Go: runtime.Version() + " " + runtime.GOOS + "/" + runtime.GOARCH,
	}
	var kb float64
	if _, err := fmt.Sscanf(m.Memory, "%f kB", &kb); err == nil {
		m.Memory = fmt.Sprintf("%.0f GiB", kb/(1<<20))
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, d := range info.Deps {
			if slices.Contains(peers, d.Path) {
				m.Modules = append(m.Modules, d.Path+" "+d.Version)
			}
		}
	}
	if _, err := pg.database(ctx, "version"); err != nil { // which starts it
		return m, err
	}
	var err error
	if m.Postgres, err = ask(ctx, "pgx", pg.dsn, "SELECT current_setting('server_version')"); err == nil {
		m.SQLite, err = ask(ctx, "sqlite3", ":memory:", "SELECT sqlite_version()")
	}
	return m, err
}

func ask(ctx context.Context, driver, dsn, query string) (answer string, err error) {
	db, err := sql.Open(driver, dsn)
	if err != nil {
		return "", err
	}
	defer db.Close()
	err = db.QueryRowContext(ctx, query).Scan(&answer)
	return answer, err
}

// procLine is a value of a file of /proc; "unknown" where there is none.
func procLine(file, key string) string {
	f, err := os.Open(file)
	if err != nil {
		return "unknown"
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if k, v, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(k) == key {
			return strings.TrimSpace(v)
		}
	}
	return "unknown"
}

func readRecords(file string) (*records, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	all := &records{}
	if err := json.Unmarshal(raw, all); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return all, nil
}

// record puts a table into the file, which keeps the others if they are of the same machine.
func record(file string, m machine, r *result) error {
	all, err := readRecords(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	here := &records{Machine: m}
	if err == nil && fmt.Sprint(all.Machine) == fmt.Sprint(here.Machine) {
		here.Tables = slices.DeleteFunc(all.Tables, func(t *result) bool { return t.Name == r.Name })
	}
	here.Tables = append(here.Tables, r)
	order := func(name string) int { return slices.IndexFunc(tables, func(t table) bool { return t.name == name }) }
	slices.SortStableFunc(here.Tables, func(a, b *result) int { return order(a.Name) - order(b.Name) })
	raw, err := json.MarshalIndent(here, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(raw, '\n'), 0o644)
}
