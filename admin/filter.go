package admin

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// The states of the list: the states of the tables, distinguished as a person would.
const (
	all       = "all"
	pending   = "pending"   // due
	scheduled = "scheduled" // due later
	running   = "running"
	parked    = "parked"
	failed    = "failed"  // ended as error and has not been re-run
	handled   = "handled" // ended as error and has been re-run
	done      = "done"
	cancelled = "cancelled"
)

var states = []string{all, pending, scheduled, running, parked, failed, handled, done, cancelled}

// filter says what a list shows. All of it is in the URL, so a URL shows the same list to every
// actor that may see it.
type filter struct {
	State, Func, Queue, Key, ID string
	Process                     string
	Args, Error                 string // parts of the text
	From, To                    time.Time
	Limit                       int
	Cursor                      *cursor

	asOf time.Time // only tasks that existed then, for a change of all tasks that were shown
}

// cursor is a place in a list. The list shows the rows after it or, with back, the rows before it.
type cursor struct {
	back bool
	at   time.Time
	id   string
}

const (
	defaultLimit = 50
	maxLimit     = 200
	maxParam     = 255
)

var (
	findParams   = []string{"state", "func", "queue", "key", "id", "process", "args", "error", "from", "to"}
	filterParams = append(slices.Clone(findParams), "limit", "cursor")
)

// noticeParams say what the last form has done; see notice.
var noticeParams = []string{"did", "n", "skipped"}

// only refuses parameters, or fields of a form, that are not in names or that are given twice. pick
// is a list, so it may be given more than once.
func only(v url.Values, names ...string) error {
	for name, values := range v {
		switch {
		case !slices.Contains(names, name) && len(names) == 0:
			return fail(http.StatusBadRequest, "There is no parameter %s. There are none here.", shorten(clean(name), 60))
		case !slices.Contains(names, name):
			return fail(http.StatusBadRequest, "There is no parameter %s. There are: %s.", shorten(clean(name), 60), strings.Join(names, ", "))
		case len(values) > 1 && name != "pick":
			return fail(http.StatusBadRequest, "%s is given twice.", name)
		}
	}
	return nil
}

// parseFilter reads a filter. If it refuses a value, the error names the accepted values.
func parseFilter(v url.Values) (f filter, err error) {
	text := func(name string) string {
		s := v.Get(name)
		if name != "key" { // a key may begin and end with spaces
			s = strings.TrimSpace(s)
		}
		switch {
		case err != nil:
		case len(s) > maxParam || !utf8.ValidString(s) || strings.ContainsRune(s, 0):
			err = fail(http.StatusBadRequest, "%s must be a text of at most %d bytes.", name, maxParam)
		}
		return s
	}
	instant := func(name string) time.Time {
		s := text(name)
		if s == "" || err != nil {
			return time.Time{}
		}
		t, bad := parseTime(s)
		if bad != nil {
			err = fail(http.StatusBadRequest, "%s must be a time: 2006-01-02T15:04 in UTC, or 2006-01-02T15:04:05+01:00.", name)
		}
		return t
	}
	f = filter{State: text("state"), Func: text("func"), Queue: text("queue"), Key: text("key"), ID: text("id"), Process: text("process"),
		Args: text("args"), Error: text("error"), From: instant("from"), To: instant("to"), Limit: defaultLimit}
	if f.State == "" {
		f.State = all
	}
	if s := text("limit"); s != "" && err == nil {
		n, bad := strconv.Atoi(s)
		if bad != nil || n < 1 || n > maxLimit {
			err = fail(http.StatusBadRequest, "limit must be a number from 1 to %d.", maxLimit)
		}
		f.Limit = n
	}
	if s := text("cursor"); s != "" && err == nil {
		f.Cursor, err = parseCursor(s)
	}
	if err == nil && !slices.Contains(states, f.State) {
		err = fail(http.StatusBadRequest, "state must be one of: %s.", strings.Join(states, ", "))
	}
	return f, err
}

func parseTime(s string) (time.Time, error) {
	for _, layout := range []string{"2006-01-02T15:04", "2006-01-02T15:04:05", time.RFC3339Nano, time.DateOnly} {
		if t, err := time.Parse(layout, s); err == nil && storable(t) {
			return t.UTC(), nil
		}
	}
	return time.Time{}, fmt.Errorf("no time")
}

// storable reports whether every database can store a time.
func storable(t time.Time) bool { return t.UTC().Year() >= 1 && t.UTC().Year() <= 9999 }

func (c cursor) String() string {
	direction := "a"
	if c.back {
		direction = "b"
	}
	return base64.RawURLEncoding.EncodeToString([]byte(direction + strconv.FormatInt(c.at.UnixMicro(), 10) + "|" + c.id))
}

func parseCursor(s string) (*cursor, error) {
	bad := fail(http.StatusBadRequest, "cursor must be one that a list gave.")
	raw, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil || len(raw) < 2 || raw[0] != 'a' && raw[0] != 'b' {
		return nil, bad
	}
	micros, id, ok := strings.Cut(string(raw[1:]), "|")
	n, err := strconv.ParseInt(micros, 10, 64)
	if !ok || err != nil || len(id) > 36 || !utf8.ValidString(id) || strings.ContainsRune(id, 0) {
		return nil, bad
	}
	at := time.UnixMicro(n).UTC()
	if !storable(at) {
		return nil, bad
	}
	return &cursor{back: raw[0] == 'b', at: at, id: id}, nil
}

// values is the filter as parameters of a URL.
func (f filter) values() url.Values {
	v := url.Values{}
	set := func(name, s string) {
		if s != "" {
			v.Set(name, s)
		}
	}
	if f.State != all {
		set("state", f.State)
	}
	set("func", f.Func)
	set("queue", f.Queue)
	set("key", f.Key)
	set("id", f.ID)
	set("process", f.Process)
	set("args", f.Args)
	set("error", f.Error)
	set("from", formTime(f.From))
	set("to", formTime(f.To))
	if f.Limit != defaultLimit {
		set("limit", strconv.Itoa(f.Limit))
	}
	if f.Cursor != nil {
		set("cursor", f.Cursor.String())
	}
	return v
}

func formTime(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	if t.Second() == 0 && t.Nanosecond() == 0 {
		return t.Format("2006-01-02T15:04")
	}
	return t.Format("2006-01-02T15:04:05.999999Z07:00")
}

// url is a link to the list, relative to the root of the pages.
func (f filter) url() string {
	if v := f.values().Encode(); v != "" {
		return "tasks?" + v
	}
	return "tasks"
}

// origin is the part of a task's URL that says from which list it was opened.
func (f filter) origin() string {
	if v := f.values().Encode(); v != "" {
		return "?list=" + url.QueryEscape(v)
	}
	return ""
}

func (f filter) with(state string) filter {
	f.State, f.Cursor = state, nil
	return f
}

// Narrowed reports whether the filter has more than a state.
func (f filter) Narrowed() bool {
	return f.Func+f.Queue+f.Key+f.ID+f.Process+f.Args+f.Error != "" || !f.From.IsZero() || !f.To.IsZero()
}

func shorten(s string, runes int) string {
	if utf8.RuneCountInString(s) <= runes {
		return s
	}
	return string([]rune(s)[:runes]) + "…"
}
