package outbox

import (
	"encoding/json"

	"github.com/gorm-outbox/outbox/internal/args"
)

// Args are named arguments: a JSON object. A handler that takes Args gets whatever keys there are,
// and its numbers as json.Number, so that integers keep every digit.
type Args = map[string]any

// encodeArgs turns arguments into a JSON object that the handler, if it is here, can take. limit is
// in bytes.
func encodeArgs(h *handler, v any, limit int) (JSON, error) {
	if j, ok := v.(JSON); ok {
		v = json.RawMessage(j)
	}
	raw, err := args.Encode(v, limit)
	if err == nil && h != nil {
		err = h.param.CheckFits(v, raw)
	} else if err == nil {
		err = args.Validate(v) // the handler is elsewhere; what its arguments must be, their type knows here too
	}
	return JSON(raw), err
}

// encodeJSON encodes a value without the escaping of HTML.
func encodeJSON(v any) (JSON, error) {
	if j, ok := v.(JSON); ok {
		v = json.RawMessage(j)
	}
	raw, err := args.EncodeValue(v)
	return JSON(raw), err
}
