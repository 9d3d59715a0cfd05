package outbox

import (
	"strings"
	"testing"
	"time"
)

func TestParseSchedule(t *testing.T) {
	now := time.Date(2026, 3, 4, 5, 6, 7, 123456789, time.UTC)
	for _, c := range []struct {
		spec string
		want time.Duration // until the first scan
	}{
		{"@every 10ms", 10 * time.Millisecond},
		{"@every 500ms", 500 * time.Millisecond},
		{"@every  1.5s ", 1500 * time.Millisecond},
		{"@every 1h", time.Hour},
		{"* * * * * *", time.Second - 123456789},
		{"*/5 * * * * *", 3*time.Second - 123456789},
		{"* * * * *", 53*time.Second - 123456789},
		{"@hourly", 54*time.Minute - 7*time.Second - 123456789},
		{"TZ=Asia/Tokyo 30 14 * * *", 24*time.Minute - 7*time.Second - 123456789},
	} {
		t.Run(c.spec, func(t *testing.T) {
			s, err := parseSchedule(c.spec)
			if err != nil {
				t.Fatal(err)
			}
			if got := s.Next(now).Sub(now); got != c.want {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

func TestParseScheduleRefuses(t *testing.T) {
	for _, c := range []struct{ spec, want string }{
		{"", "empty spec"},
		{"now", "expected 5 to 6 fields"},
		{"@every", "unrecognized descriptor"},
		{"@every x", "invalid duration"},
		{"@every 0s", "an interval of 0s is below 10ms"},
		{"@every -1s", "below 10ms"},
		{"@every 9ms", "below 10ms"},
		{"@reboot", "unrecognized descriptor"},
		{"61 * * * *", "above maximum"},
		{"0 0 31 2 *", "never comes"},
		{"TZ=UTC", "not a cron spec"},
		{"TZ=Nowhere/Land * * * * *", "Nowhere/Land"},
	} {
		t.Run(c.spec, func(t *testing.T) {
			s, err := parseSchedule(c.spec)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, %v; want an error with %q", s, err, c.want)
			}
		})
	}
}
