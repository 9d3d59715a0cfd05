package args

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gorm-outbox/outbox/internal/text"
)

// Named has a handler's arguments by their names, for a handler that accepts any keys.
type Named = map[string]any

// Param is the parameter of a handler that takes arguments. The zero Param is for a handler without
// arguments.
type Param struct {
	typ   reflect.Type // a struct, a pointer to one, or Named; nil means no parameter
	plain bool         // a struct whose encoded values all fit it
}

// ParamOf returns the parameter of a type. ok is false unless the type is a struct, a pointer to a
// struct, or Named.
func ParamOf(t reflect.Type) (p Param, ok bool) {
	if t != reflect.TypeFor[Named]() && t.Kind() != reflect.Struct && (t.Kind() != reflect.Pointer || t.Elem().Kind() != reflect.Struct) {
		return Param{}, false
	}
	return Param{t, t.Kind() == reflect.Struct && Plain(t)}, true
}

// Takes reports whether the handler takes arguments.
func (p Param) Takes() bool { return p.typ != nil }

// CallsMethods reports whether Bind may call methods of the type, which may panic.
func (p Param) CallsMethods() bool {
	return p.typ != nil && !p.plain && p.typ != reflect.TypeFor[Named]()
}

// CheckFits reports whether arguments that were encoded as raw can be bound. A value of the
// parameter's own type can be bound without a test if all parts of the type are decoded as they are
// encoded.
func (p Param) CheckFits(args any, raw []byte) error {
	if p.plain && reflect.TypeOf(args) == p.typ {
		return nil
	}
	_, err := p.Bind(raw)
	return err
}

// Bind decodes stored arguments into the parameter. Its errors name the key. It panics if the
// type's own methods panic.
func (p Param) Bind(raw []byte) (reflect.Value, error) {
	raw = bytes.TrimSpace(raw)
	if len(raw) == 0 || raw[0] != '{' {
		return reflect.Value{}, errors.New("they are not a JSON object")
	}
	if p.typ == nil {
		return reflect.Value{}, checkFields(raw, &fields{})
	}
	struc := p.typ
	if struc.Kind() == reflect.Pointer {
		struc = struc.Elem()
	}
	if err := checkFields(raw, shapeOf(struc).fields); err != nil {
		return reflect.Value{}, err
	}
	ptr := reflect.New(struc)
	if err := decodeInto(raw, ptr); err != nil {
		var wrong *json.UnmarshalTypeError
		if errors.As(err, &wrong) && wrong.Field != "" {
			return reflect.Value{}, fmt.Errorf("key %s: a JSON %s does not fit %s", text.Quote(wrong.Field), wrong.Value, wrong.Type)
		}
		return reflect.Value{}, err
	}
	if v, ok := ptr.Interface().(interface{ Validate() error }); ok {
		if err := v.Validate(); err != nil {
			return reflect.Value{}, err
		}
	}
	if p.typ.Kind() == reflect.Pointer {
		return ptr, nil
	}
	return ptr.Elem(), nil
}

// Validate calls the Validate method of arguments, by value or by pointer, as Bind does after it
// has decoded them.
func Validate(args any) error {
	if v, ok := args.(interface{ Validate() error }); ok {
		return v.Validate()
	}
	v := reflect.ValueOf(args)
	if v.Kind() != reflect.Struct || !reflect.PointerTo(v.Type()).Implements(validator) {
		return nil
	}
	ptr := reflect.New(v.Type())
	ptr.Elem().Set(v)
	return ptr.Interface().(interface{ Validate() error }).Validate()
}

var (
	jsonMarshaler = reflect.TypeFor[json.Marshaler]()
	textMarshaler = reflect.TypeFor[encoding.TextMarshaler]()
	validator     = reflect.TypeFor[interface{ Validate() error }]()
	timeType      = reflect.TypeFor[time.Time]()
)

// Plain reports whether every value of a type, encoded by encoding/json, fits the type. Such a type
// has no methods that decode, encode or check, no interfaces, no embedded fields and no recursion.
func Plain(t reflect.Type) bool { return plainWithin(t, nil) }

// plainWithin is Plain; within has the structs that enclose the type.
func plainWithin(t reflect.Type, within []reflect.Type) bool {
	if t == timeType {
		return true
	}
	p := reflect.PointerTo(t)
	for _, i := range []reflect.Type{jsonMarshaler, jsonUnmarshaler, textMarshaler, textUnmarshaler} {
		if p.Implements(i) {
			return false
		}
	}
	switch t.Kind() {
	case reflect.Bool, reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64, reflect.Uint, reflect.Uint8, reflect.Uint16,
		reflect.Uint32, reflect.Uint64, reflect.Float32, reflect.Float64:
		return true
	case reflect.String:
		return t != reflect.TypeFor[json.Number]()
	case reflect.Pointer, reflect.Slice, reflect.Array:
		return plainWithin(t.Elem(), within)
	case reflect.Map:
		return t.Key() == reflect.TypeFor[string]() && plainWithin(t.Elem(), within)
	case reflect.Struct:
		if slices.Contains(within, t) || len(within) == 0 && p.Implements(validator) {
			return false
		}
		within = append(slices.Clone(within), t)
		for i := range t.NumField() {
			sf := t.Field(i)
			_, options, _ := strings.Cut(sf.Tag.Get("json"), ",")
			if sf.Anonymous || !sf.IsExported() || slices.Contains(strings.Split(options, ","), "string") || !plainWithin(sf.Type, within) {
				return false
			}
		}
		return true
	}
	return false
}

var interfaceCache sync.Map // reflect.Type → bool

// holdsInterface reports whether a type contains a value of an interface type.
func holdsInterface(t reflect.Type) bool {
	if known, ok := interfaceCache.Load(t); ok {
		return known.(bool)
	}
	within := map[reflect.Type]bool{}
	var walk func(t reflect.Type) bool
	walk = func(t reflect.Type) bool {
		if within[t] || reflect.PointerTo(t).Implements(jsonUnmarshaler) {
			return false // the type's own method decides
		}
		within[t] = true
		switch t.Kind() {
		case reflect.Interface:
			return true
		case reflect.Pointer, reflect.Slice, reflect.Array, reflect.Map:
			return walk(t.Elem())
		case reflect.Struct:
			for i := range t.NumField() {
				if walk(t.Field(i).Type) {
					return true
				}
			}
		}
		return false
	}
	holds := walk(t)
	interfaceCache.Store(t, holds)
	return holds
}

// decodeInto keeps every digit of a number that is decoded into an interface. For a type without
// interfaces, Unmarshal does the same at less cost.
func decodeInto(raw []byte, ptr reflect.Value) error {
	if !holdsInterface(ptr.Type().Elem()) {
		return json.Unmarshal(raw, ptr.Interface())
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	return dec.Decode(ptr.Interface())
}
