package outbox

import (
	"fmt"
	"time"

	"github.com/gorm-outbox/outbox/internal/text"
)

// parseStartTime parses a wall-clock time and insists that the location has it exactly once.
func parseStartTime(wanted string, loc *time.Location) (time.Time, error) {
	// Parse accepts what the form does not have, such as fractions of a second.
	wall, err := time.Parse(time.DateTime, wanted)
	if err != nil || wall.Format(time.DateTime) != wanted {
		return time.Time{}, fmt.Errorf("%s is not a time of the form %q", text.Quote(wanted), time.DateTime)
	}
	t, err := time.ParseInLocation(time.DateTime, wanted, loc)
	if err != nil {
		return time.Time{}, fmt.Errorf("%s: %w", text.Quote(wanted), err)
	}
	// The instants that show this wall-clock time have one of the offsets in force around it.
	start, end := t.ZoneBounds()
	around := []time.Time{t}
	if !start.IsZero() {
		around = append(around, start.Add(-time.Second))
	}
	if !end.IsZero() {
		around = append(around, end)
	}
	var found []time.Time
	for _, a := range around {
		_, offset := a.In(loc).Zone()
		u := wall.Add(-time.Duration(offset) * time.Second).In(loc)
		if u.Format(time.DateTime) != wanted {
			continue
		}
		if len(found) == 0 || !found[0].Equal(u) {
			found = append(found, u)
		}
	}
	switch len(found) {
	case 0:
		return time.Time{}, fmt.Errorf("%s does not exist in %s: clocks are put forward there; use StartAt", wanted, loc)
	case 1:
		return found[0], nil
	}
	return time.Time{}, fmt.Errorf("%s is ambiguous in %s: clocks are put back there; use StartAt", wanted, loc)
}
