package outbox

import (
	"slices"
	"strings"
	"testing"
	"time"
	_ "time/tzdata" // the same rules on every machine
)

func location(t testing.TB, name string) *time.Location {
	t.Helper()
	loc, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return loc
}

func TestParseStartTime(t *testing.T) {
	for _, c := range []struct{ name, text, zone, want string }{
		{"UTC", "2026-01-02 03:04:05", "UTC", "2026-01-02T03:04:05Z"},
		{"winter", "2026-01-02 03:04:05", "Europe/Berlin", "2026-01-02T02:04:05Z"},
		{"summer", "2026-07-02 03:04:05", "Europe/Berlin", "2026-07-02T01:04:05Z"},
		{"just before the gap", "2026-03-29 01:59:59", "Europe/Berlin", "2026-03-29T00:59:59Z"},
		{"just after the gap", "2026-03-29 03:00:00", "Europe/Berlin", "2026-03-29T01:00:00Z"},
		{"just before the overlap", "2026-10-25 01:59:59", "Europe/Berlin", "2026-10-24T23:59:59Z"},
		{"just after the overlap", "2026-10-25 03:00:00", "Europe/Berlin", "2026-10-25T02:00:00Z"},
		{"a leap day", "2028-02-29 12:00:00", "UTC", "2028-02-29T12:00:00Z"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := parseStartTime(c.text, location(t, c.zone))
			if err != nil || got.UTC().Format(time.RFC3339) != c.want {
				t.Errorf("got %v, %v; want %s", got, err, c.want)
			}
		})
	}
}

func TestParseStartTimeRefuses(t *testing.T) {
	for _, c := range []struct{ name, text, zone, want string }{
		{"a gap", "2026-03-29 02:30:00", "Europe/Berlin", "does not exist in Europe/Berlin: clocks are put forward"},
		{"the first second of a gap", "2026-03-29 02:00:00", "Europe/Berlin", "does not exist"},
		{"the last second of a gap", "2026-03-29 02:59:59", "Europe/Berlin", "does not exist"},
		{"an overlap", "2026-10-25 02:30:00", "Europe/Berlin", "ambiguous in Europe/Berlin: clocks are put back"},
		{"the first second of an overlap", "2026-10-25 02:00:00", "Europe/Berlin", "ambiguous"},
		{"the last second of an overlap", "2026-10-25 02:59:59", "Europe/Berlin", "ambiguous"},
		{"a day that was skipped", "2011-12-30 12:00:00", "Pacific/Apia", "does not exist"},
		{"half an hour's gap", "2026-10-04 02:15:00", "Australia/Lord_Howe", "does not exist"},
		{"half an hour's overlap", "2026-04-05 01:45:00", "Australia/Lord_Howe", "ambiguous"},
		{"another form", "2026-01-02T03:04:05Z", "UTC", `of the form "2006-01-02 15:04:05"`},
		{"fractions", "2026-01-02 03:04:05.5", "UTC", "of the form"},
		{"no leading zeros", "2026-01-02 3:04:05", "UTC", "of the form"},
		{"white space", " 2026-01-02 03:04:05", "UTC", "of the form"},
		{"a day that no year has", "2026-02-30 00:00:00", "UTC", "of the form"},
		{"a leap second", "2016-12-31 23:59:60", "UTC", "of the form"},
		{"nothing", "", "UTC", "of the form"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := parseStartTime(c.text, location(t, c.zone))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, %v; want an error with %q", got, err, c.want)
			}
		})
	}
}

// instants finds those that show a wall-clock time, by trying every offset that there is.
func instants(wall time.Time, loc *time.Location) []time.Time {
	text := wall.Format(time.DateTime)
	var found []time.Time
	for offset := -26 * time.Hour; offset <= 26*time.Hour; offset += 15 * time.Minute {
		if u := wall.Add(-offset).In(loc); u.Format(time.DateTime) == text {
			found = append(found, u)
		}
	}
	return found
}

func TestParseStartTimeAroundEveryChange(t *testing.T) {
	t.Parallel()
	for _, zone := range []string{
		"America/New_York", "Europe/Dublin", "Australia/Lord_Howe", "Africa/Casablanca", "America/Santiago", "Asia/Tehran",
		"Asia/Gaza", "Pacific/Apia", "Pacific/Kiritimati", "Antarctica/Troll", "Asia/Kolkata",
	} {
		t.Run(zone, func(t *testing.T) {
			loc := location(t, zone)
			unique, gaps, overlaps := 0, 0, 0
			for at := time.Date(2009, 1, 1, 0, 0, 0, 0, loc); at.Year() < 2027; {
				_, at = at.ZoneBounds()
				if at.IsZero() {
					break
				}
				_, offset := at.Zone()
				around := at.Add(time.Duration(offset) * time.Second).UTC()
				for d := -3 * time.Hour; d <= 3*time.Hour; d += 15 * time.Minute {
					wall := around.Add(d)
					want := instants(wall, loc)
					got, err := parseStartTime(wall.Format(time.DateTime), loc)
					switch {
					case len(want) == 0:
						gaps++
					case len(want) > 1:
						overlaps++
					default:
						unique++
						if err != nil || !got.Equal(want[0]) {
							t.Errorf("%v: got %v, %v; want %v", wall, got, err, want[0])
						}
						continue
					}
					if err == nil {
						t.Errorf("%v: got %v; there are %v", wall, got, want)
					}
				}
			}
			// Kolkata never changes; everywhere else both must have been met, or the test proves
			// nothing.
			if changes := !slices.Contains([]string{"Asia/Kolkata", "Pacific/Kiritimati"}, zone); changes && (unique == 0 || gaps == 0 || overlaps == 0) {
				t.Errorf("%d unique times, %d gaps, %d overlaps", unique, gaps, overlaps)
			}
		})
	}
}

func FuzzParseStartTime(f *testing.F) {
	for _, seed := range []string{
		"2026-01-02 03:04:05", "2026-03-29 02:30:00", "2026-10-25 02:30:00", "0000-01-01 00:00:00", "9999-12-31 23:59:59",
		"2026-01-02 03:04:05.5", "2026-01-02 24:00:00", "2011-12-30 12:00:00", "1883-11-18 12:00:00", "", "-", "２026-01-02 03:04:05",
	} {
		f.Add(seed, "Europe/Berlin")
		f.Add(seed, "Pacific/Apia")
		f.Add(seed, "UTC")
	}
	f.Fuzz(func(t *testing.T, text, zone string) {
		loc, err := time.LoadLocation(zone)
		if err != nil {
			return
		}
		got, err := parseStartTime(text, loc)
		if err != nil {
			return
		}
		if got.In(loc).Format(time.DateTime) != text {
			t.Errorf("%q in %s gives %v", text, zone, got)
		}
		wall, err := time.Parse(time.DateTime, text)
		if err != nil {
			t.Fatal(err)
		}
		for _, other := range instants(wall, loc) {
			if !other.Equal(got) {
				t.Errorf("%q in %s is %v, but also %v", text, zone, got, other)
			}
		}
	})
}
