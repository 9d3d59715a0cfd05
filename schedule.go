package outbox

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
)

// minScan keeps a slip of the pen from becoming a busy loop.
const minScan = 10 * time.Millisecond

// parseSchedule reads a cron spec, with three things that cron.Parse does not do: intervals below a
// second, an error in place of a panic ("TZ=UTC" without a spec), and an error for a spec that
// never comes ("0 0 31 2 *").
func parseSchedule(spec string) (s cron.Schedule, err error) {
	defer func() {
		if v := recover(); v != nil {
			s, err = nil, fmt.Errorf("not a cron spec (%v)", v)
		}
	}()
	if every, ok := strings.CutPrefix(spec, "@every "); ok {
		d, err := time.ParseDuration(strings.TrimSpace(every))
		if err != nil {
			return nil, err
		}
		if d < minScan {
			return nil, fmt.Errorf("an interval of %v is below %v", d, minScan)
		}
		return interval(d), nil
	}
	parser := cron.NewParser(cron.SecondOptional | cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow | cron.Descriptor)
	if s, err = parser.Parse(spec); err != nil {
		return nil, err
	}
	if s.Next(time.Now()).IsZero() {
		return nil, errors.New("never comes")
	}
	return s, nil
}

// interval is cron's ConstantDelaySchedule, which cannot be shorter than a second.
type interval time.Duration

func (i interval) Next(t time.Time) time.Time { return t.Add(time.Duration(i)) }
