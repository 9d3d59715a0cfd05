// Package args represents a handler's arguments as strict JSON: it encodes them, checks them
// against the handler's type, and decodes them into it. It knows JSON and reflection. It must not
// know tasks, handlers or databases, except for values that some databases do not store.
package args

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// MaxDepth is the maximum nesting of arguments and results. MariaDB refuses 40 levels.
const MaxDepth = 32

// Encode encodes arguments as a JSON object that every supported database stores and returns
// unchanged.
//
// limit is in bytes. The error for larger arguments names the option of the library that raises it.
func Encode(args any, limit int) (json.RawMessage, error) {
	if args == nil {
		return json.RawMessage("{}"), nil
	}
	raw, err := EncodeValue(args)
	if err != nil {
		return nil, err
	}
	if len(raw) > limit {
		return nil, fmt.Errorf("they have %d bytes, over the limit of %d: pass ids, not objects, or raise Options.MaxArgsBytes",
			len(raw), limit)
	}
	if raw[0] != '{' {
		if string(raw) == "null" {
			return json.RawMessage("{}"), nil
		}
		return nil, fmt.Errorf("they are not a JSON object but %s", kindOf(raw))
	}
	return raw, CheckStorable(raw)
}

// EncodeValue encodes a value without escaping HTML, which would only make a column harder to read.
func EncodeValue(v any) (json.RawMessage, error) {
	var b bytes.Buffer
	var err error
	switch v := v.(type) {
	case json.RawMessage:
		err = json.Compact(&b, v)
	case []byte:
		err = json.Compact(&b, v)
	default:
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false)
		err = enc.Encode(v)
	}
	if err != nil {
		return nil, err
	}
	raw := bytes.TrimSuffix(b.Bytes(), []byte("\n"))
	if len(raw) == 0 {
		return nil, fmt.Errorf("there is no JSON")
	}
	return raw, nil
}

func kindOf(raw []byte) string {
	switch raw[0] {
	case '[':
		return "an array"
	case '"':
		return "a string"
	case 't', 'f':
		return "a boolean"
	}
	return "a number"
}
