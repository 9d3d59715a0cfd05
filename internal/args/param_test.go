package args

//lint:file-ignore SA5008 odd tags are what is tested

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// The types that follow are here for the rules of encoding/json about their fields. Embedded ones
// are named after what is odd about them.

type inner struct {
	City string `json:"city"`
	Zip  string
}

type Twin1 struct {
	Name string
	Own1 int
}

type Twin2 struct {
	Name string
	Own2 int
}

type TaggedTwin struct {
	N string `json:"Name"`
}

type Base struct{ ID, Kind int }

type WithBase struct {
	Base
	Extra int
}

type Left struct{ Base }

type Right struct{ Base }

type Cyclic struct {
	*Cyclic
	Value int
}

type Number int

type bare int

type valid struct{ From, To int }

func (v *valid) Validate() error {
	if v.From > v.To {
		return errors.New("From is after To")
	}
	return nil
}

// own decodes itself, so that its fields say nothing about its keys.
type own struct{ pairs map[string]int }

func (o *own) UnmarshalJSON(b []byte) error { return json.Unmarshal(b, &o.pairs) }

type color struct{ name string }

func (c *color) UnmarshalText(b []byte) error { c.name = string(b); return nil }

func (c color) MarshalText() ([]byte, error) { return []byte(c.name), nil }

func TestCollectFields(t *testing.T) {
	one := 1
	for _, c := range []struct {
		name     string
		value    any // with every field set, so that encoding/json writes all of its keys
		required []string
	}{
		{"no fields", struct{}{}, nil},
		{"plain", struct{ A, B int }{1, 2}, []string{"A", "B"}},
		{"tags", struct {
			A int `json:"a"`
			B int `json:"-"`
			C int `json:"-,"`
			D int `json:",string"`
			E int `xml:"e"`
		}{1, 2, 3, 4, 5}, []string{"a", "-", "D", "E"}},
		{"names that encoding/json does not accept", struct {
			A int `json:"a\"b"`
			B int `json:"b\\c"`
			C int `json:"ç/$ %"`
		}{1, 2, 3}, []string{"A", "B", "ç/$ %"}},
		{"unexported", struct {
			A int
			b int
		}{1, 2}, []string{"A"}},
		{"optional", struct {
			P *int
			E int   `json:"e,omitempty"`
			Z int   `json:",omitzero"`
			S []int `json:"s"`
			T int   `json:"t,string,omitempty"`
		}{&one, 1, 1, []int{1}, 1}, []string{"s"}},
		{"embedded", struct {
			inner
			Street string
		}{inner{"a", "b"}, "c"}, []string{"city", "Zip", "Street"}},
		{"embedded by a pointer is optional", struct {
			*Base
			A int
		}{&Base{1, 2}, 3}, []string{"A"}},
		{"embedded under a name", struct {
			Base `json:"base"`
		}{Base{1, 2}}, []string{"base"}},
		{"embedded, not a struct", struct {
			Number
			bare
		}{1, 2}, []string{"Number"}},
		{"shadowed by the outer", struct {
			Twin1
			Name string
		}{Twin1{"a", 1}, "b"}, []string{"Own1", "Name"}},
		{"shadowed by a tag of the outer", struct {
			Twin1
			X string `json:"Name"`
		}{Twin1{"a", 1}, "b"}, []string{"Own1", "Name"}},
		{"two at one depth cancel each other", struct {
			Twin1
			Twin2
		}{Twin1{"a", 1}, Twin2{"b", 2}}, []string{"Own1", "Own2"}},
		{"of two at one depth the tagged one", struct {
			Twin1
			TaggedTwin
		}{Twin1{"a", 1}, TaggedTwin{"b"}}, []string{"Own1", "Name"}},
		{"one type at two depths", struct {
			*WithBase
			Base
		}{&WithBase{Base{1, 2}, 3}, Base{4, 5}}, []string{"ID", "Kind"}},
		{"one type twice at one depth", struct {
			Left
			Right
			A int
		}{Left{Base{1, 2}}, Right{Base{3, 4}}, 5}, []string{"A"}},
		{"a type within itself", Cyclic{&Cyclic{nil, 1}, 2}, []string{"Value"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := collectFields(reflect.TypeOf(c.value))
			raw, err := json.Marshal(c.value)
			if err != nil {
				t.Fatal(err)
			}
			var written map[string]any
			if err := json.Unmarshal(raw, &written); err != nil {
				t.Fatal(err)
			}
			want := slices.Sorted(maps.Keys(written))
			if got := slices.Sorted(maps.Keys(f.byName)); !slices.Equal(got, want) {
				t.Errorf("fields %q, but encoding/json writes %q", got, want)
			}
			if got := slices.Sorted(slices.Values(f.order)); !slices.Equal(got, want) {
				t.Errorf("order %q, want %q", f.order, want)
			}
			slices.Sort(f.required)
			slices.Sort(c.required)
			if !slices.Equal(f.required, c.required) {
				t.Errorf("required %q, want %q", f.required, c.required)
			}
		})
	}
}

type orderArgs struct {
	OrderID int64             `json:"orderId"`
	Reason  string            `json:"reason,omitempty"`
	Address *inner            `json:"address"`
	Items   []inner           `json:"items,omitempty"`
	Pair    [2]int            `json:"pair,omitzero"`
	ByName  map[string]inner  `json:"byName,omitempty"`
	Counts  map[string]int    `json:"counts,omitempty"`
	Any     any               `json:"any,omitempty"`
	At      time.Time         `json:"at,omitzero"`
	Color   color             `json:"color,omitzero"`
	Raw     json.RawMessage   `json:"raw,omitempty"`
	Texts   map[string]string `json:"texts,omitempty"`
}

func bindTo[A any](raw string) (A, error) {
	p, _ := ParamOf(reflect.TypeFor[A]())
	v, err := p.Bind([]byte(raw))
	if err != nil {
		var none A
		return none, err
	}
	return v.Interface().(A), nil
}

func TestBind(t *testing.T) {
	full := orderArgs{
		OrderID: 9223372036854775807, Reason: "late", Address: &inner{"Bern", "3000"}, Items: []inner{{City: "Rome"}},
		Pair: [2]int{1, 2}, ByName: map[string]inner{"x": {Zip: "1"}}, Any: map[string]any{"deep": json.Number("1")},
		At: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Color: color{"red"}, Raw: json.RawMessage(`{"un": 1}`),
	}
	got, err := bindTo[orderArgs](` {"orderId":9223372036854775807,"reason":"late","address":{"city":"Bern","Zip":"3000"},
		"items":[{"city":"Rome"}],"pair":[1,2],"byName":{"x":{"Zip":"1"}},"any":{"deep":1},"at":"2026-01-02T03:04:05Z",
		"color":"red","raw":{"un": 1}} `)
	if err != nil || !reflect.DeepEqual(got, full) {
		t.Errorf("got %+v, %v; want %+v", got, err, full)
	}
	t.Run("a pointer", func(t *testing.T) {
		got, err := bindTo[*orderArgs](`{"orderId":1}`)
		if err != nil || got.OrderID != 1 {
			t.Errorf("got %+v, %v", got, err)
		}
	})
	t.Run("optional keys and null where Go has nil", func(t *testing.T) {
		if _, err := bindTo[orderArgs](`{"orderId":1,"address":null,"items":null,"byName":null,"any":null,"raw":null}`); err != nil {
			t.Error(err)
		}
	})
	t.Run("Named take everything and keep digits", func(t *testing.T) {
		got, err := bindTo[Named](`{"a":9007199254740993,"A":{"b":[null]}}`)
		want := Named{"a": json.Number("9007199254740993"), "A": map[string]any{"b": []any{nil}}}
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %v, %v", got, err)
		}
	})
	t.Run("digits are kept wherever an interface is", func(t *testing.T) {
		type leaf struct {
			V any `json:"v"`
		}
		type tree struct {
			Next   *tree             `json:"next,omitempty"`
			List   []*leaf           `json:"list,omitempty"`
			ByName map[string][1]any `json:"byName,omitempty"`
		}
		const n = json.Number("9007199254740993")
		got, err := bindTo[tree](`{"next":{"list":[{"v":9007199254740993}]},"byName":{"x":[9007199254740993]}}`)
		if err != nil || got.Next.List[0].V != n || got.ByName["x"][0] != n {
			t.Errorf("got %+v, %v", got, err)
		}
	})
	t.Run("a type that decodes itself takes its own keys", func(t *testing.T) {
		got, err := bindTo[own](`{"a":1,"b":2}`)
		if err != nil || !maps.Equal(got.pairs, map[string]int{"a": 1, "b": 2}) {
			t.Errorf("got %v, %v", got, err)
		}
	})
	t.Run("no parameter takes no arguments", func(t *testing.T) {
		var p Param
		if _, err := p.Bind([]byte(`{}`)); err != nil {
			t.Error(err)
		}
		if _, err := p.Bind([]byte(`{"a":1}`)); err == nil || !strings.Contains(err.Error(), `key "a" is taken by no parameter; there are: none`) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("Validate is called", func(t *testing.T) {
		if _, err := bindTo[valid](`{"From":1,"To":2}`); err != nil {
			t.Error(err)
		}
		if _, err := bindTo[valid](`{"From":3,"To":2}`); err == nil || err.Error() != "From is after To" {
			t.Errorf("got %v", err)
		}
		if _, err := bindTo[*valid](`{"From":3,"To":2}`); err == nil {
			t.Error("not called for a pointer")
		}
	})
}

func TestBindRefuses(t *testing.T) {
	for _, c := range []struct{ name, raw, want string }{
		{"nothing", ``, "not a JSON object"},
		{"an array", `[]`, "not a JSON object"},
		{"null", `null`, "not a JSON object"},
		{"broken JSON", `{"orderId":1`, "not valid JSON"},
		{"an unknown key", `{"orderId":1,"order":2}`, `key "order" is taken by no parameter; there are: orderId, reason`},
		{"a key in another case", `{"orderid":1}`, `key "orderid" differs from the parameter "orderId" in case only`},
		{"a key in two cases", `{"orderId":1,"ORDERID":2}`, `key "ORDERID" differs from the parameter "orderId" in case only`},
		{"a missing key", `{"reason":"x"}`, `key "orderId" is missing`},
		{"null for a number", `{"orderId":null}`, `key "orderId" is null, which int64 cannot take`},
		{"null for a text", `{"orderId":1,"reason":null}`, `key "reason" is null, which string cannot take`},
		{"null for a text type", `{"orderId":1,"color":null}`, `key "color" is null`},
		{"null in an array", `{"orderId":1,"pair":[1,null]}`, `key "pair[1]" is null, which int cannot take`},
		{"null in a map", `{"orderId":1,"counts":{"x":null}}`, `key "counts.x" is null, which int cannot take`},
		{"a wrong type", `{"orderId":"1"}`, `key "orderId": a JSON string does not fit int64`},
		{"a fraction", `{"orderId":1.5}`, `key "orderId": a JSON number 1.5 does not fit int64`},
		{"too large a number", `{"orderId":9223372036854775808}`, `key "orderId"`},
		{"a nested unknown key", `{"orderId":1,"address":{"city":"x","town":"y"}}`, `key "address.town" is taken by no parameter; there are: city, Zip`},
		{"a nested key in another case", `{"orderId":1,"address":{"City":"x"}}`, `key "address.City" differs from the parameter "city" in case only`},
		{"an unknown key in a list", `{"orderId":1,"items":[{},{"x":1}]}`, `key "items[1].x" is taken by no parameter`},
		{"an unknown key in a map's value", `{"orderId":1,"byName":{"k":{"x":1}}}`, `key "byName.k.x" is taken by no parameter`},
		{"a nested wrong type", `{"orderId":1,"address":{"city":1}}`, `key "address.city": a JSON number does not fit string`},
		{"a duplicate in raw JSON", `{"orderId":1,"raw":{"a":1,"a":1}}`, `key "raw.a" is there twice`},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := bindTo[orderArgs](c.raw)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %+v, %v; want an error with %q", got, err, c.want)
			}
		})
	}
}

// What bind takes, a strict decoder of encoding/json takes too, with the same value.
func FuzzBind(f *testing.F) {
	for _, seed := range []string{
		`{"orderId":1}`, `{"orderId":1,"reason":null}`, `{"orderId":1,"address":{"city":"x"}}`, `{"ORDERID":1}`, `{"orderId":1e2}`,
		`{"orderId":1,"items":[{"Zip":"1"},null]}`, `{"orderId":1,"pair":[1,2,3]}`, `{"orderId":1,"any":[{"a":1.50}]}`,
		`{"orderId":1,"at":null,"color":"x","raw":[1 , 2]}`, `{"orderId":1,"counts":{"a":1,"A":2}}`, `{"orderıd":1}`, `{"orderId":1,"texts":{"\ud83d\ude00":"x"}}`,
		`{}`, `{"orderId":-0}`, `{"orderId":1} x`, "\v{}",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		got, err := bindTo[orderArgs](raw)
		if err != nil {
			return
		}
		dec := json.NewDecoder(bytes.NewReader([]byte(raw)))
		dec.UseNumber()
		dec.DisallowUnknownFields()
		var want orderArgs
		if err := dec.Decode(&want); err != nil {
			t.Fatalf("took %q, but encoding/json says: %v", raw, err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%q: got %+v, want %+v", raw, got, want)
		}
	})
}
