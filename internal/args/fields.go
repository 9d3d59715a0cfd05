package args

import (
	"encoding"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"unicode"
)

// shape describes the Go type into which a JSON value is decoded. The zero shape accepts every
// value.
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
		return shape{} // the type's own method decides
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

// field is the shape of a key's value. It returns an error if the type has no such field.
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

// fields are the fields of a struct, by the names and rules of encoding/json.
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

// collectFields follows encoding/json: of several fields with the same name, the shallowest counts.
// Of several of these, the only tagged one counts. If more than one is left, none counts.
func collectFields(t reflect.Type) *fields {
	type candidate struct {
		name             string
		typ              reflect.Type
		depth            int
		tagged, optional bool
	}
	found := map[string][]candidate{}
	var order []string
	within := map[reflect.Type]bool{} // enclosing types; elsewhere a type is read each time
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

// validName reports whether encoding/json accepts a name in a tag. Otherwise encoding/json uses the
// field's name.
func validName(name string) bool {
	return !strings.ContainsFunc(name, func(c rune) bool {
		return !unicode.IsLetter(c) && !unicode.IsDigit(c) && !strings.ContainsRune("!#$%&()*+-./:;<=>?@[]^_{|}~ ", c)
	})
}
