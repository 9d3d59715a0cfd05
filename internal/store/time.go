package store

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// instant reads a time column. Drivers give a time.Time, or text where SQLite has no declared type
// (RETURNING).
type instant struct{ t *time.Time }

func (i instant) Scan(src any) error {
	switch v := src.(type) {
	case time.Time:
		*i.t = v.UTC()
		return nil
	case string:
		return i.parse(v)
	case []byte:
		return i.parse(string(v))
	case int64:
		*i.t = unixTime(v)
		return nil
	}
	return fmt.Errorf("outbox: scan: a time column holds %T", src)
}

// unixTime reads a time that another program has written as a number, as some drivers do where a
// column takes anything: in seconds, or else in milli-, micro- or nanoseconds, which its size tells
// of any time since 2002.
func unixTime(n int64) time.Time {
	switch size := max(n, -n); {
	case size < 1e12:
		return time.Unix(n, 0).UTC()
	case size < 1e15:
		return time.UnixMilli(n).UTC()
	case size < 1e18:
		return time.UnixMicro(n).UTC()
	}
	return time.Unix(0, n).UTC()
}

func (i instant) parse(s string) error {
	// The form that this library stores is decoded several times as fast as RFC 3339.
	if utc, ok := strings.CutSuffix(s, "+00:00"); ok && len(utc) > len(time.DateOnly) && utc[len(time.DateOnly)] == ' ' {
		b := append(append(make([]byte, 0, 40), utc...), 'Z')
		b[len(time.DateOnly)] = 'T'
		if i.t.UnmarshalText(b) == nil {
			return nil
		}
	}
	for _, layout := range []string{"2006-01-02 15:04:05.999999999Z07:00", "2006-01-02 15:04:05.999999999-07", time.DateTime, time.RFC3339Nano} {
		if t, err := time.Parse(layout, s); err == nil {
			*i.t = t.UTC()
			return nil
		}
	}
	if n, err := strconv.ParseInt(s, 10, 64); err == nil {
		*i.t = unixTime(n)
		return nil
	}
	return fmt.Errorf("outbox: scan: %q is not a time", s)
}

// nullInstant reads a time column that may be NULL.
type nullInstant struct{ t **time.Time }

func (n nullInstant) Scan(src any) error {
	*n.t = nil
	if src == nil {
		return nil
	}
	var t time.Time
	if err := (instant{&t}).Scan(src); err != nil {
		return err
	}
	*n.t = &t
	return nil
}
