package args

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/gorm-outbox/outbox/internal/text"
)

// CheckStorable refuses JSON that a database or a decoder would change or reject: invalid JSON or
// UTF-8, \u0000, half a surrogate pair, a duplicate key, nesting deeper than MaxDepth. It reads the
// text itself, because a decoder would hide all of these.
func CheckStorable(raw []byte) error { return checkFields(raw, nil) }

// checkFields does what CheckStorable does. If f is not nil, the object's keys must also be those
// of its type's fields.
func checkFields(raw []byte, f *fields) error {
	if !json.Valid(raw) {
		var v any
		return fmt.Errorf("not valid JSON: %w", json.Unmarshal(raw, &v))
	}
	if !utf8.Valid(raw) {
		return fmt.Errorf("not valid UTF-8")
	}
	w := walker{raw: raw}
	return w.value(shape{fields: f}, "")
}

// walker reads JSON that is known to be valid.
type walker struct {
	raw   []byte
	pos   int
	depth int
}

func (w *walker) skipSpace() {
	for w.pos < len(w.raw) && strings.IndexByte(" \t\r\n", w.raw[w.pos]) >= 0 {
		w.pos++
	}
}

// next skips white space and consumes the byte c if it comes next.
func (w *walker) next(c byte) bool {
	w.skipSpace()
	if w.pos < len(w.raw) && w.raw[w.pos] == c {
		w.pos++
		return true
	}
	return false
}

func (w *walker) value(s shape, path string) error {
	w.skipSpace()
	switch w.raw[w.pos] {
	case '{', '[':
		if w.depth++; w.depth > MaxDepth {
			return fmt.Errorf("key %s: nested deeper than %d levels", text.Quote(path), MaxDepth)
		}
		defer func() { w.depth-- }()
		if w.raw[w.pos] == '[' {
			return w.array(s.elem(), path)
		}
		return w.object(s, path)
	case '"':
		_, err := w.str(path)
		return err
	case 'n':
		if s.noNull {
			return fmt.Errorf("key %s is null, which %s cannot take", text.Quote(path), s.typ)
		}
	}
	for w.pos < len(w.raw) && strings.IndexByte(" \t\r\n,]}", w.raw[w.pos]) < 0 {
		w.pos++
	}
	return nil
}

func (w *walker) array(elem shape, path string) error {
	w.pos++
	for i := 0; !w.next(']'); i++ {
		w.next(',')
		if err := w.value(elem, path+"["+strconv.Itoa(i)+"]"); err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) object(s shape, path string) error {
	w.pos++
	top := w.depth == 1
	var seen keys
	for !w.next('}') {
		w.next(',')
		w.skipSpace()
		key, err := w.str(path)
		if err != nil {
			return err
		}
		w.next(':')
		at := key
		if path != "" {
			at = path + "." + key
		}
		if seen.has(key) {
			return fmt.Errorf("key %s is there twice", text.Quote(at))
		}
		seen.add(key)
		inner, err := s.field(key)
		if err != nil {
			return fmt.Errorf("key %s %w", text.Quote(at), err)
		}
		if err := w.value(inner, at); err != nil {
			return err
		}
	}
	if top && s.fields != nil {
		for _, name := range s.fields.required {
			if !seen.has(name) {
				return fmt.Errorf("key %s is missing; a field that may be left out is a pointer or has omitempty", text.Quote(name))
			}
		}
	}
	return nil
}

// keys is a set of an object's keys. Most objects have few keys, for which a map would cost more
// than it saves.
type keys struct {
	few  [8]string
	n    int // number of keys in few
	many map[string]bool
}

func (k *keys) has(key string) bool { return slices.Contains(k.few[:k.n], key) || k.many[key] }

func (k *keys) add(key string) {
	if k.n < len(k.few) {
		k.few[k.n] = key
		k.n++
		return
	}
	if k.many == nil {
		k.many = map[string]bool{}
	}
	k.many[key] = true
}

// str reads a string and refuses characters that some databases do not store.
func (w *walker) str(path string) (string, error) {
	start := w.pos
	escaped := false
	for w.pos++; w.raw[w.pos] != '"'; w.pos++ {
		if w.raw[w.pos] != '\\' {
			continue
		}
		escaped = true
		w.pos++
		if w.raw[w.pos] != 'u' {
			continue
		}
		r := w.hex(w.pos + 1)
		w.pos += 4
		switch {
		case r == 0:
			return "", fmt.Errorf("key %s: \\u0000, which databases do not store", text.Quote(path))
		case r >= 0xdc00 && r <= 0xdfff:
			return "", fmt.Errorf("key %s: \\u%04x, half of a surrogate pair", text.Quote(path), r)
		case r >= 0xd800 && r <= 0xdbff:
			if w.raw[w.pos+1] != '\\' || w.raw[w.pos+2] != 'u' {
				return "", fmt.Errorf("key %s: \\u%04x, half of a surrogate pair", text.Quote(path), r)
			}
			if low := w.hex(w.pos + 3); low < 0xdc00 || low > 0xdfff {
				return "", fmt.Errorf("key %s: \\u%04x, half of a surrogate pair", text.Quote(path), r)
			}
			w.pos += 6
		}
	}
	w.pos++
	raw := w.raw[start:w.pos]
	if !escaped {
		return string(raw[1 : len(raw)-1]), nil
	}
	var s string
	err := json.Unmarshal(raw, &s)
	return s, err
}

func (w *walker) hex(at int) int64 {
	n, _ := strconv.ParseInt(string(w.raw[at:at+4]), 16, 32)
	return n
}
