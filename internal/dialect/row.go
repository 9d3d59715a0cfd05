package dialect

import (
	"database/sql"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
)

// arrayRow is a row whose values are already read, for example from the text of a JSON array.
// Drivers that call into C need more time for the columns of each row than for the whole statement.
type arrayRow struct {
	values []any // strings (also for numbers) and nil; for a sql.Scanner any value
	broken bool
}

// Scan supports the types into which a task's row is read.
func (r arrayRow) Scan(dest ...any) error {
	if r.broken || len(dest) != len(r.values) {
		return fmt.Errorf("not an array of %d texts, numbers and NULLs", len(dest))
	}
	for i, d := range dest {
		if err := assign(d, r.values[i]); err != nil {
			return fmt.Errorf("value %d: %w", i, err)
		}
	}
	return nil
}

func assign(dest, value any) (err error) {
	if s, ok := dest.(sql.Scanner); ok {
		return s.Scan(value)
	}
	text, ok := value.(string)
	switch d := dest.(type) {
	case *any:
		*d = value
		return nil
	case **string:
		if *d = nil; ok {
			*d = &text
		}
		return nil
	}
	if !ok {
		return errors.New("it is NULL")
	}
	switch d := dest.(type) {
	case *string:
		*d = text
	case *int:
		*d, err = strconv.Atoi(text)
	case *int64:
		*d, err = strconv.ParseInt(text, 10, 64)
	case *bool:
		*d, err = strconv.ParseBool(text)
	default:
		v := reflect.ValueOf(dest)
		if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.String {
			return fmt.Errorf("it cannot be read into a %T", dest)
		}
		v.Elem().SetString(text)
	}
	return err
}

// parse splits an array that json_array has made of columns: texts, numbers and NULLs. It does not
// parse JSON in general. It keeps bytes that are not valid UTF-8; a JSON decoder would replace
// them. A row that is not such an array fails to scan.
func (r arrayRow) parse(text string) arrayRow {
	r.values, r.broken = r.values[:0], true
	for rest := text; rest != "" && (rest[0] == ',' || rest[0] == '[' && len(r.values) == 0); {
		rest = rest[1:]
		if strings.HasPrefix(rest, `"`) {
			value, n := unquote(rest)
			if n == 0 {
				break
			}
			r.values, rest = append(r.values, value), rest[n:]
		} else {
			n := strings.IndexByte(rest, ',')
			if n < 0 {
				n = strings.IndexByte(rest, ']')
			}
			if n <= 0 {
				break
			}
			var value any
			if rest[:n] != "null" {
				value = rest[:n]
			}
			r.values, rest = append(r.values, value), rest[n:]
		}
		r.broken = rest != "]"
	}
	return r
}

// unquote reads the string at the beginning of s and returns the length of its source; zero means
// that s does not begin with a string.
func unquote(s string) (value string, n int) {
	end := strings.IndexByte(s[1:], '"') + 1
	if end > 0 && strings.IndexByte(s[1:end], '\\') < 0 {
		return s[1:end], end + 1
	}
	b := make([]byte, 0, 2*end+64)
	for i := 1; i < len(s); i++ {
		switch c := s[i]; c {
		case '"':
			return string(b), i + 1
		case '\\':
			if i++; i == len(s) {
				return "", 0
			}
			if at := strings.IndexByte(`"\/bfnrt`, s[i]); at >= 0 {
				b = append(b, "\"\\/\b\f\n\r\t"[at])
				continue
			}
			// json_array writes other control characters, and no other characters, as \u00xx.
			if s[i] != 'u' || i+4 >= len(s) {
				return "", 0
			}
			code, err := strconv.ParseUint(s[i+1:i+5], 16, 8)
			if err != nil || code >= 0x80 {
				return "", 0
			}
			b = append(b, byte(code))
			i += 4
		default:
			b = append(b, c)
		}
	}
	return "", 0
}
