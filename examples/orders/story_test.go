package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"gorm.io/driver/mysql"
	"gorm.io/driver/postgres"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/gorm-outbox/outbox/testutil/testdb"
)

// asProgram makes the test binary be the program, so that its exit status can be seen.
const asProgram = "ORDERS_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// lines of the story, in order; the times and the database differ.
var lines = []string{
	`2s stands for thirty minutes`,
	`vase and its task were inserted, then rolled back: out of stock\. No order, no task`,
	`\(book\) is placed; its task services\.OrderSvc\.checkAndCancel\(\{"orderId":\d+,"reason":"timeout"\}\) waits for 2s`,
	`\(lamp\) is placed; its task services\.OrderSvc\.checkAndCancel\(`,
	`\(book\) is paid, and in the same transaction its task is cancelled`,
	`receipt failed\. The history keeps: services\.Mailer\.sendReceipt\(.*\), error after attempt 1: "the mail server does not answer"`,
	`run again by hand`,
	`This time: success, "receipt for order \d+ sent"`,
	`Nobody pays order \d+ \(lamp\)`,
	`it is cancelled\. Its task was started \S+ after its time`,
	`\(book\) is still paid`,
}

func TestStory(t *testing.T) {
	for name, where := range map[string]func(testing.TB) place{
		"sqlite":   func(testing.TB) place { return place{} },
		"postgres": func(t testing.TB) place { return place{postgres: testdb.PostgresDSN(t)} },
		"mariadb":  func(t testing.TB) place { return place{mysql: testdb.MariaDBDSN(t)} },
		"mysql":    func(t testing.TB) place { return place{mysql: testdb.MySQLDSN(t)} },
	} {
		t.Run(name, func(t *testing.T) {
			at, temp := where(t), t.TempDir()
			t.Setenv("TMPDIR", temp)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			var out bytes.Buffer
			if err := run(ctx, &out, at, ""); err != nil {
				t.Fatalf("%v\n%s", err, &out)
			}
			told := strings.Split(strings.TrimSpace(out.String()), "\n")
			if len(told) != len(lines) {
				t.Fatalf("%d lines, want %d:\n%s", len(told), len(lines), &out)
			}
			for i, line := range lines {
				if !regexp.MustCompile(`^ *\d+\.\d\ds  .*` + line).MatchString(told[i]) {
					t.Errorf("line %d does not tell %s:\n%s", i+1, line, told[i])
				}
			}
			nothingLeft(t, temp, at, out.String())
		})
	}
}

func TestStoryThatGoesWrong(t *testing.T) {
	t.Run("is an error and leaves nothing behind", func(t *testing.T) {
		temp := t.TempDir()
		t.Setenv("TMPDIR", temp)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second) // before the lamp's time
		defer cancel()
		var out bytes.Buffer
		if err := run(ctx, &out, place{}, ""); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("err = %v, want the deadline's", err)
		}
		nothingLeft(t, temp, place{}, out.String())
	})

	t.Run("exits with status 1 and says why", func(t *testing.T) {
		program, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), program, "-postgres", "postgres://me:secret@127.0.0.1:1/shop")
		cmd.Env = append(os.Environ(), asProgram+"=1")
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != 1 {
			t.Errorf("%v, want exit status 1", err)
		}
		for _, part := range []string{"did not come out as told", "127.0.0.1"} {
			if !strings.Contains(string(out), part) {
				t.Errorf("does not say %q:\n%s", part, out)
			}
		}
		if strings.Contains(string(out), "secret") {
			t.Errorf("tells the password:\n%s", out)
		}
	})
}

func TestStoryWithPages(t *testing.T) {
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	read, write := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		err := run(ctx, write, place{}, "127.0.0.1:0")
		ended <- errors.Join(err, write.Close())
	}()
	where := regexp.MustCompile(`(http://\S+/admin/) for user (\S+), password (\S+)\.`)
	var found []string
	told := bufio.NewScanner(read)
	for told.Scan() && !strings.Contains(told.Text(), "The pages stay") {
		if m := where.FindStringSubmatch(told.Text()); m != nil {
			found = m
		}
	}
	go io.Copy(io.Discard, read)
	if found == nil {
		t.Fatalf("the story does not say where the pages are, or ends: %v", <-ended)
	}
	r, err := http.NewRequestWithContext(t.Context(), "GET", found[1]+"tasks?state=handled", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.SetBasicAuth(found[2], found[3])
	w, err := http.DefaultClient.Do(r)
	for ; err == nil && w.StatusCode == 503 && ctx.Err() == nil; w, err = http.DefaultClient.Do(r) {
		w.Body.Close() // a busy machine; the page says to try again
	}
	if err != nil {
		t.Fatal(err)
	}
	defer w.Body.Close()
	body, err := io.ReadAll(w.Body)
	if err != nil || w.StatusCode != 200 || !strings.Contains(string(body), "the mail server does not answer") {
		t.Errorf("%v, status %d, the failure is not shown:\n%s", err, w.StatusCode, body)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("interrupted: %v", err)
	}
	nothingLeft(t, temp, place{}, temp)
}

// nothingLeft of the story's database: neither a file nor a schema.
func nothingLeft(t *testing.T, temp string, at place, out string) {
	t.Helper()
	left, err := os.ReadDir(temp)
	if err != nil {
		t.Fatal(err)
	}
	if len(left) > 0 {
		t.Errorf("left in the temporary directory: %v", left)
	}
	if at == (place{}) {
		if !strings.Contains(out, temp) {
			t.Errorf("the database was elsewhere than in %s:\n%s", temp, out)
		}
		return
	}
	name := regexp.MustCompile(`orders_[a-z0-9]+`).FindString(out)
	dialector := postgres.Open(at.postgres)
	if at.mysql != "" {
		dialector = mysql.Open(at.mysql)
	}
	db, err := gorm.Open(dialector, &gorm.Config{Logger: logger.Discard})
	if err != nil {
		t.Fatal(err)
	}
	defer closePool(db)
	var n int64
	if err := db.Raw("SELECT count(*) FROM information_schema.schemata WHERE schema_name = ?", name).Scan(&n).Error; err != nil {
		t.Fatal(err)
	}
	if name == "" || n != 0 {
		t.Errorf("schema %q is still there", name)
	}
}
