package outbox

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
	"unicode"
)

// shape is what is known of the Go type that a JSON value goes into; the zero shape takes everything.
type shape struct {
	typ    reflect.Type
	fields *fields // of a struct
	noNull bool
}

var (
	jsonUnmarshaler = reflect.TypeFor[json.Unmarshaler]()
	textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()
)

func shapeOf(t reflect.Type) shape {
	if t == nil {
		return shape{}
	}
	nullable := false
	for t.Kind() == reflect.Pointer {
		t, nullable = t.Elem(), true
	}
	if p := reflect.PointerTo(t); p.Implements(jsonUnmarshaler) {
		return shape{} // it decides for itself
	} else if p.Implements(textUnmarshaler) {
		return shape{typ: t, noNull: !nullable}
	}
	s := shape{typ: t}
	switch t.Kind() {
	case reflect.Map, reflect.Slice, reflect.Interface:
		nullable = true
	case reflect.Struct:
		s.fields = fieldsOf(t)
	}
	s.noNull = !nullable
	return s
}

// elem is the shape of an array's elements.
func (s shape) elem() shape {
	if s.typ != nil && (s.typ.Kind() == reflect.Slice || s.typ.Kind() == reflect.Array) {
		return shapeOf(s.typ.Elem())
	}
	return shape{}
}

// field is the shape of a key's value; an error when the type has no such field.
func (s shape) field(key string) (shape, error) {
	if s.fields == nil {
		if s.typ != nil && s.typ.Kind() == reflect.Map {
			return shapeOf(s.typ.Elem()), nil
		}
		return shape{}, nil
	}
	if t, ok := s.fields.byName[key]; ok {
		return shapeOf(t), nil
	}
	for name := range s.fields.byName {
		if strings.EqualFold(name, key) {
			return shape{}, fmt.Errorf("differs from the parameter %q in case only; they must be equal", name)
		}
	}
	return shape{}, fmt.Errorf("is taken by no parameter; there are: %s", s.fields.list())
}

// fields of a struct, by the names and rules of encoding/json.
type fields struct {
	byName   map[string]reflect.Type
	order    []string
	required []string // neither a pointer nor omitempty nor omitzero
}

func (f *fields) list() string {
	if len(f.order) == 0 {
		return "none"
	}
	return strings.Join(f.order, ", ")
}

var fieldCache sync.Map // reflect.Type → *fields

func fieldsOf(t reflect.Type) *fields {
	if f, ok := fieldCache.Load(t); ok {
		return f.(*fields)
	}
	f := collectFields(t)
	fieldCache.Store(t, f)
	return f
}

// collectFields follows encoding/json: of several fields with one name the shallowest counts, then the only tagged one;
// if that leaves more than one, none does.
func collectFields(t reflect.Type) *fields {
	type candidate struct {
		name             string
		typ              reflect.Type
		depth            int
		tagged, optional bool
	}
	found := map[string][]candidate{}
	var order []string
	within := map[reflect.Type]bool{} // types that embed each other; elsewhere a type counts each time
	var walk func(t reflect.Type, depth int, optional bool)
	walk = func(t reflect.Type, depth int, optional bool) {
		if within[t] {
			return
		}
		within[t] = true
		defer delete(within, t)
		for i := range t.NumField() {
			sf := t.Field(i)
			tag := sf.Tag.Get("json")
			if tag == "-" {
				continue
			}
			name, rest, _ := strings.Cut(tag, ",")
			if !validName(name) {
				name = ""
			}
			ft := sf.Type
			pointer := ft.Kind() == reflect.Pointer
			if sf.Anonymous {
				et := ft
				if pointer {
					et = et.Elem()
				}
				if !sf.IsExported() && et.Kind() != reflect.Struct {
					continue
				}
				if name == "" && et.Kind() == reflect.Struct {
					walk(et, depth+1, optional || pointer)
					continue
				}
			} else if !sf.IsExported() {
				continue
			}
			tagged := name != ""
			if !tagged {
				name = sf.Name
			}
			c := candidate{name, ft, depth, tagged, optional || pointer}
			for o := range strings.SplitSeq(rest, ",") {
				c.optional = c.optional || o == "omitempty" || o == "omitzero"
			}
			if found[name] == nil {
				order = append(order, name)
			}
			found[name] = append(found[name], c)
		}
	}
	walk(t, 0, false)

	f := &fields{byName: map[string]reflect.Type{}}
	for _, name := range order {
		var best []candidate
		for _, c := range found[name] {
			switch {
			case len(best) == 0 || c.depth < best[0].depth || c.depth == best[0].depth && c.tagged && !best[0].tagged:
				best = []candidate{c}
			case c.depth == best[0].depth && c.tagged == best[0].tagged:
				best = append(best, c)
			}
		}
		if len(best) != 1 {
			continue
		}
		f.byName[name] = best[0].typ
		f.order = append(f.order, name)
		if !best[0].optional {
			f.required = append(f.required, name)
		}
	}
	return f
}

// validName says whether encoding/json accepts a name in a tag; otherwise it takes the field's.
func validName(name string) bool {
	return !strings.ContainsFunc(name, func(c rune) bool {
		return !unicode.IsLetter(c) && !unicode.IsDigit(c) && !strings.ContainsRune("!#$%&()*+-./:;<=>?@[]^_{|}~ ", c)
	})
}

// validate calls the arguments' own Validate, by value or by pointer, as bind does after it has decoded them.
func validate(args any) error {
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

// check finds out whether arguments that were encoded as raw can be bound. A value of the handler's own type can, if all
// that the type consists of is decoded as it was encoded.
func (h *handler) check(args any, raw []byte) error {
	if h.plain && reflect.TypeOf(args) == h.args {
		return nil
	}
	_, err := h.bind(raw)
	return err
}

var (
	jsonMarshaler = reflect.TypeFor[json.Marshaler]()
	textMarshaler = reflect.TypeFor[encoding.TextMarshaler]()
	validator     = reflect.TypeFor[interface{ Validate() error }]()
	timeType      = reflect.TypeFor[time.Time]()
)

// plainType reports that what encoding/json makes of a value of the type fits the type: it has no methods that decode, encode
// or check, no interfaces, nothing embedded and no recursion. within are the structs around it.
func plainType(t reflect.Type, within []reflect.Type) bool {
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
		return plainType(t.Elem(), within)
	case reflect.Map:
		return t.Key() == reflect.TypeFor[string]() && plainType(t.Elem(), within)
	case reflect.Struct:
		if slices.Contains(within, t) || len(within) == 0 && p.Implements(validator) {
			return false
		}
		within = append(slices.Clone(within), t)
		for i := range t.NumField() {
			sf := t.Field(i)
			_, options, _ := strings.Cut(sf.Tag.Get("json"), ",")
			if sf.Anonymous || !sf.IsExported() || slices.Contains(strings.Split(options, ","), "string") || !plainType(sf.Type, within) {
				return false
			}
		}
		return true
	}
	return false
}

var interfaceCache sync.Map // reflect.Type → bool

// holdsInterface reports whether some value within a type may be of an interface.
func holdsInterface(t reflect.Type) bool {
	if known, ok := interfaceCache.Load(t); ok {
		return known.(bool)
	}
	within := map[reflect.Type]bool{}
	var walk func(t reflect.Type) bool
	walk = func(t reflect.Type) bool {
		if within[t] || reflect.PointerTo(t).Implements(jsonUnmarshaler) {
			return false // it decides for itself
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

// decodeInto keeps every digit of a number that goes into an interface. Where there is none, Unmarshal does the same for less.
func decodeInto(raw []byte, ptr reflect.Value) error {
	if !holdsInterface(ptr.Type().Elem()) {
		return json.Unmarshal(raw, ptr.Interface())
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	return dec.Decode(ptr.Interface())
}

// bind decodes stored arguments into the handler's parameter. Its errors name the key.
func (h *handler) bind(raw []byte) (reflect.Value, error) {
	raw = bytes.TrimSpace(raw)
	if len(raw) == 0 || raw[0] != '{' {
		return reflect.Value{}, errors.New("they are not a JSON object")
	}
	if h.args == nil {
		return reflect.Value{}, checkJSON(raw, &fields{})
	}
	struc := h.args
	if struc.Kind() == reflect.Pointer {
		struc = struc.Elem()
	}
	if err := checkJSON(raw, shapeOf(struc).fields); err != nil {
		return reflect.Value{}, err
	}
	ptr := reflect.New(struc)
	if err := decodeInto(raw, ptr); err != nil {
		var wrong *json.UnmarshalTypeError
		if errors.As(err, &wrong) && wrong.Field != "" {
			return reflect.Value{}, fmt.Errorf("key %s: a JSON %s does not fit %s", quote(wrong.Field), wrong.Value, wrong.Type)
		}
		return reflect.Value{}, err
	}
	if v, ok := ptr.Interface().(interface{ Validate() error }); ok {
		if err := v.Validate(); err != nil {
			return reflect.Value{}, err
		}
	}
	if h.args.Kind() == reflect.Pointer {
		return ptr, nil
	}
	return ptr.Elem(), nil
}
