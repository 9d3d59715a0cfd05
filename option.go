package outbox

import (
	"fmt"
	"math"
	"strings"
	"time"
	"unicode/utf8"
)

// CreateOption is a choice for Create, CreateBatch, Define and Rerun. Where two of a kind are
// given, the later one holds. A value that is not valid is ErrBadOption.
type CreateOption interface {
	RerunOption
	forCreate()
}

// RerunOption is a choice for Rerun: any CreateOption, and WithArgs.
type RerunOption interface {
	apply(*settings, *Plugin) error
}

// ChangeOption is a choice for Cancel, CancelKey and Reschedule: IfVersion.
type ChangeOption interface {
	forChange(*settings)
}

// createOption is a CreateOption. Without a plugin, set only checks.
type createOption struct {
	name string
	set  func(s *settings, p *Plugin) error
}

func (createOption) forCreate() {}

func (o createOption) apply(s *settings, p *Plugin) error {
	if err := o.set(s, p); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrBadOption, o.name, err)
	}
	return nil
}

// settings are what options set, resolved for one call.
type settings struct {
	at          time.Time     // start time; zero means after
	after       time.Duration // from now
	maxAttempts int
	timeout     time.Duration
	key         *string
	queue       string
	priority    int
	version     *int64
	args        any
	hasArgs     bool
}

const (
	defaultQueue    = "default"
	defaultPriority = 2

	maxName  = 255 // bytes, as the column has characters
	maxKey   = 255
	maxID    = 36
	maxQueue = 64

	maxMaxAttempts = 10_000
	maxYear        = 9999 // the largest that every database stores
)

// resolve applies options. Without a plugin it only checks them.
func resolve[O RerunOption](p *Plugin, opts []O) (settings, error) {
	s := settings{maxAttempts: 1, queue: defaultQueue, priority: defaultPriority}
	for i, o := range opts {
		if any(o) == nil {
			return s, fmt.Errorf("%w: option %d is nil", ErrBadOption, i)
		}
		if err := o.apply(&s, p); err != nil {
			return s, err
		}
	}
	return s, nil
}

// StartAt makes the task due at t. A time that is not in the future by this process's clock means
// now, by the database's. The zero Time is an error.
func StartAt(t time.Time) CreateOption {
	return createOption{"StartAt", func(s *settings, _ *Plugin) error {
		if err := checkTime(t); err != nil {
			return err
		}
		s.at, s.after = t, 0
		return nil
	}}
}

// StartAfter makes the task due d after its creation, by the database's clock. Zero means at once;
// a negative d is an error.
func StartAfter(d time.Duration) CreateOption {
	return createOption{"StartAfter", func(s *settings, _ *Plugin) error {
		if d < 0 {
			return fmt.Errorf("%v is negative", d)
		}
		s.at, s.after = time.Time{}, d
		return nil
	}}
}

// StartTime makes the task due at a wall-clock time of the form "2006-01-02 15:04:05" in
// Options.Location. A time that the location skips, or has twice, when clocks are changed is an
// error: use StartAt to say which instant is meant.
func StartTime(text string) CreateOption {
	return createOption{"StartTime", func(s *settings, p *Plugin) error {
		location := time.UTC // Define asks for the form only
		if p != nil {
			location = p.opts.Location
		}
		t, err := parseStartTime(text, location)
		if err != nil {
			return err
		}
		s.at, s.after = t, 0
		return checkTime(t)
	}}
}

// MaxAttempts allows n runs in all, the first included, from 1 (the default: no automatic retry) to
// 10,000. A run that returns an error, panics, or whose process dies is followed by another after
// Options.Backoff while runs are left.
func MaxAttempts(n int) CreateOption {
	return createOption{"MaxAttempts", func(s *settings, _ *Plugin) error {
		if n < 1 || n > maxMaxAttempts {
			return fmt.Errorf("%d is not between 1 and %d", n, maxMaxAttempts)
		}
		s.maxAttempts = n
		return nil
	}}
}

// Timeout limits one run; it is rounded up to milliseconds. The handler's context ends then; a run
// that has not returned when Options.CancelGrace is over too ends as error, reason timeout, outcome
// unknown, and is not retried. Its slot stays taken until the handler returns, whose outcome is
// refused. Zero, the default, means no limit.
func Timeout(d time.Duration) CreateOption {
	return createOption{"Timeout", func(s *settings, _ *Plugin) error {
		if d < 0 {
			return fmt.Errorf("%v is negative", d)
		}
		s.timeout = min(d, math.MaxInt64-time.Millisecond) // room for rounding up
		return nil
	}}
}

// Key allows at most one unfinished task per key, across functions; running counts as unfinished.
// So a handler cannot create a task with its own key, and work that arrives while it runs is
// refused with ErrDuplicateKey: put a version into the key if that matters. 1 to 255 bytes.
//
// Create may have to wait for another transaction that holds the key and has not ended.
func Key(key string) CreateOption {
	return createOption{"Key", func(s *settings, _ *Plugin) error {
		if err := checkText(key, maxKey); err != nil {
			return err
		}
		s.key = &key
		return nil
	}}
}

// Queue puts the task into a queue, "default" by default; Options.Queues says which ones a process
// serves. Queues take turns: each claim of a process gives its free slots to the queues with due
// tasks in equal shares, and begins with another one. So a queue with many tasks does not keep the
// others waiting, whatever its priorities. A queue for each tenant is a good use. The name has 1 to
// 64 bytes.
func Queue(name string) CreateOption {
	return createOption{"Queue", func(s *settings, _ *Plugin) error {
		if err := checkText(name, maxQueue); err != nil {
			return err
		}
		s.queue = name
		return nil
	}}
}

// Priority orders the due tasks of a queue: 1 to 4, lower first, 2 by default; among equals the
// earlier start time goes first. It is strict: while tasks of priority 1 are due, none of priority
// 2 of that queue starts. It says nothing about other queues: those take turns, see [Queue].
func Priority(n int) CreateOption {
	return createOption{"Priority", func(s *settings, _ *Plugin) error {
		if n < 1 || n > 4 {
			return fmt.Errorf("%d is not between 1 and 4", n)
		}
		s.priority = n
		return nil
	}}
}

// IfVersion makes Cancel, CancelKey and Reschedule act only on a row whose Version is still v;
// otherwise they give ErrConflict.
func IfVersion(v int64) ChangeOption { return ifVersion(v) }

type ifVersion int64

func (v ifVersion) forChange(s *settings) { s.version = (*int64)(&v) }

// WithArgs gives Rerun other arguments than those of the finished task.
func WithArgs(args any) RerunOption { return withArgs{args} }

type withArgs struct{ args any }

func (w withArgs) apply(s *settings, _ *Plugin) error {
	s.args, s.hasArgs = w.args, true
	return nil
}

func checkText(s string, limit int) error {
	switch {
	case s == "":
		return fmt.Errorf("is empty")
	case len(s) > limit:
		return fmt.Errorf("has %d bytes; at most %d are stored", len(s), limit)
	case !utf8.ValidString(s) || strings.ContainsRune(s, 0):
		return fmt.Errorf("%q is not valid text", s)
	}
	return nil
}

func checkTime(t time.Time) error {
	if t.IsZero() {
		return fmt.Errorf("the zero time")
	}
	if y := roundUp(t).UTC().Year(); y < 1 || y > maxYear {
		return fmt.Errorf("year %d is not between 1 and %d", y, maxYear)
	}
	return nil
}

// roundUp gives a start time the precision that databases store: up, because a task is never early.
func roundUp(t time.Time) time.Time { return t.Add(time.Microsecond - 1).Truncate(time.Microsecond) }
