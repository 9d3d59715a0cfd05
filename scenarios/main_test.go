package scenarios_test

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"
)

// TestMain lets the test binary be a child process, and looks for what the library leaves running.
func TestMain(m *testing.M) {
	if role := os.Getenv(roleEnv); role != "" {
		os.Exit(childMain(role))
	}
	if dsn := os.Getenv(dispatcherEnv); dsn != "" {
		os.Exit(dispatcherMain(dsn))
	}
	if dsn := os.Getenv(processEnv); dsn != "" {
		os.Exit(processMain(dsn))
	}
	flag.Parse()
	_ = flag.Set("test.parallel", "8") // they mostly wait for heartbeats and children
	status := m.Run()
	if left := leftGoroutines(); left != "" && status == 0 {
		fmt.Fprintf(os.Stderr, "goroutines of the library are left:\n%s\n", left)
		status = 1
	}
	os.Exit(status)
}

// ours is a function of the library, of which every package counts but the tests' own.
var ours = regexp.MustCompile(`github\.com/gorm-outbox/outbox(/(internal/(commitwatch|dialect|dispatch|guard|store)|admin|pgnotify))?\.`)

// leftGoroutines are those with a function of the library on their stack, some seconds after the
// tests.
func leftGoroutines() string {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(10 * time.Second)
	for {
		buf := make([]byte, 1<<20)
		var left []string
		for stack := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
			if ours.MatchString(stack) {
				left = append(left, stack)
			}
		}
		select {
		case <-tick.C:
		case <-limit:
			return strings.Join(left, "\n\n")
		}
		if len(left) == 0 {
			return ""
		}
	}
}
