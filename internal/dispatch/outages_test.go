package dispatch

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// conflictError is a deadlock as a driver tells it.
type conflictError struct{}

func (conflictError) Error() string    { return "deadlock detected" }
func (conflictError) SQLState() string { return "40P01" }

func TestOutagesAndConflicts(t *testing.T) {
	for name, test := range map[string]func(t *testing.T, outages *outages, said func() string){
		"a conflict is logged once a period, with a count": func(t *testing.T, outages *outages, said func() string) {
			for range 300 { // one each second, and each time it works the next time
				outages.failed("claim", conflictError{})
				outages.recovered("claim")
				time.Sleep(time.Second) // of the fake clock
			}
			log := said()
			if n := strings.Count(log, "\n"); n != 5 || !strings.Contains(log, "count=1 ") || strings.Count(log, "count=60 ") != 4 {
				t.Errorf("in five minutes it says\n%s", log)
			}
			outages.failed("write outcomes", conflictError{})
			if log := said(); !strings.Contains(log, "count=1 ") {
				t.Errorf("of another step it says %q", log)
			}
		},
		"an outage is logged at its begin and at its end": func(t *testing.T, outages *outages, said func() string) {
			for range 2 {
				outages.failed("claim", errors.New("gone"))
				outages.failed("claim", errors.New("gone"))
				outages.recovered("claim")
				outages.recovered("claim")
				if log := said(); strings.Count(log, "\n") != 2 || strings.Count(log, "database error") != 1 || strings.Count(log, "recovered") != 1 {
					t.Errorf("it says\n%s", log)
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				test(t, &outages{log: slog.New(slog.NewTextHandler(&log, nil))}, func() string {
					defer log.Reset()
					return log.String()
				})
			})
		})
	}
}
