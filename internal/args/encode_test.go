package args

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"math"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestEncode(t *testing.T) {
	type order struct {
		ID uint64 `json:"id"`
	}
	for _, c := range []struct {
		name string
		args any
		want string
	}{
		{"nil is no arguments", nil, `{}`},
		{"a nil pointer is no arguments", (*order)(nil), `{}`},
		{"a nil map is no arguments", Named(nil), `{}`},
		{"a struct", order{7}, `{"id":7}`},
		{"a pointer", &order{7}, `{"id":7}`},
		{"an integer beyond a float's", order{math.MaxUint64}, `{"id":18446744073709551615}`},
		{"a map", Named{"b": 1, "a": nil}, `{"a":null,"b":1}`},
		{"HTML is not escaped", Named{"a": "<b> & c"}, `{"a":"<b> & c"}`},
		{"raw JSON loses its white space only", json.RawMessage(" { \"n\" : 12345678901234567890.10 } \n"), `{"n":12345678901234567890.10}`},
		{"bytes are JSON", []byte(`{"a": [1, 2]}`), `{"a":[1,2]}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Encode(c.args, 1000)
			if err != nil || string(got) != c.want {
				t.Errorf("got %s, %v; want %s", got, err, c.want)
			}
		})
	}
}

func TestEncodeRefuses(t *testing.T) {
	for _, c := range []struct {
		name string
		args any
		want string // in the error
	}{
		{"an array", []int{1}, "not a JSON object but an array"},
		{"a string", "{}", "not a JSON object but a string"},
		{"a boolean", true, "not a JSON object but a boolean"},
		{"a number", 7, "not a JSON object but a number"},
		{"a channel", Named{"c": make(chan int)}, "unsupported type"},
		{"not a number", Named{"f": math.NaN()}, "unsupported value"},
		{"broken JSON", json.RawMessage(`{"a":`), "unexpected end"},
		{"no JSON at all", json.RawMessage(nil), "unexpected end"},
		{"too large", Named{"a": strings.Repeat("x", 1000)}, "1008 bytes, over the limit of 1000"},
		{"NUL", Named{"a": "\x00"}, `key "a": \u0000`},
		{"NUL in a key", json.RawMessage(`{"a":{"\u0000":1}}`), `key "a": \u0000`},
		{"half a surrogate pair, high", json.RawMessage(`{"a":"\ud800"}`), `key "a": \ud800, half of a surrogate`},
		{"half a surrogate pair, high before another escape", json.RawMessage(`{"a":"\ud800\n"}`), `\ud800, half of a surrogate`},
		{"two high halves", json.RawMessage(`{"a":"\ud800\ud800"}`), `\ud800, half of a surrogate`},
		{"half a surrogate pair, low", json.RawMessage(`{"a":"\udc00"}`), `\udc00, half of a surrogate`},
		{"a key twice", json.RawMessage(`{"a":1,"a":2}`), `key "a" is there twice`},
		{"a key twice by an escape", json.RawMessage(`{"a":1,"\u0061":2}`), `key "a" is there twice`},
		{"a nested key twice", json.RawMessage(`{"a":[{"b":1,"b":2}]}`), `key "a[0].b" is there twice`},
		{"bytes that are not UTF-8", json.RawMessage("{\"a\":\"\xff\"}"), "not valid UTF-8"},
		{"too deep", json.RawMessage(`{"a":` + strings.Repeat("[", MaxDepth) + strings.Repeat("]", MaxDepth) + `}`), "nested deeper than 32"},
		{"far too deep", json.RawMessage(`{"a":` + strings.Repeat("[", 20000) + strings.Repeat("]", 20000) + `}`), "max depth"},
	} {
		t.Run(c.name, func(t *testing.T) {
			limit := 1000
			if strings.Contains(c.name, "deep") {
				limit = 1 << 20
			}
			got, err := Encode(c.args, limit)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %.100s, %v; want an error with %q", got, err, c.want)
			}
		})
	}
}

func TestCheckTakes(t *testing.T) {
	for _, raw := range []string{
		`{}`, `{"a":null}`, ` { "a" : [ 1 , -2.5e+10 , true , false , null , "x" , { } , [ ] ] } `,
		`{"a":"\ud83d\ude00 \\u0000 \" \/ \n"}`,
		`{"a":1,"A":2}`, // for a handler that takes any name both are keys
		`{"a":{"x":1},"b":{"x":1}}`,
		`{"":1}`,
		`{"a":` + strings.Repeat("[", MaxDepth-1) + strings.Repeat("]", MaxDepth-1) + `}`,
	} {
		if err := CheckStorable([]byte(raw)); err != nil {
			t.Errorf("%s: %v", raw, err)
		}
	}
}

// defects is what a decoder can tell of what checkJSON has to refuse.
type defects struct{ deep, twice, nul, replaced bool }

func findDefects(t *testing.T, raw []byte) defects {
	t.Helper()
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var d defects
	text := func(s string) string {
		d.nul = d.nul || strings.Contains(s, "\x00")
		d.replaced = d.replaced || strings.Contains(s, "\uFFFD")
		return s
	}
	type level struct {
		keys map[string]bool // nil in an array
		key  bool            // the next string is a key
	}
	var stack []level
	for {
		token, err := dec.Token()
		if errors.Is(err, io.EOF) {
			return d
		}
		if err != nil {
			t.Fatalf("%q is valid, but: %v", raw, err)
		}
		top := len(stack) - 1
		if s, ok := token.(string); ok {
			text(s)
			if top >= 0 && stack[top].key {
				d.twice = d.twice || stack[top].keys[s]
				stack[top].keys[s], stack[top].key = true, false
				continue
			}
		}
		switch token {
		case json.Delim('{'):
			stack = append(stack, level{map[string]bool{}, true})
			d.deep = d.deep || len(stack) > MaxDepth
			continue
		case json.Delim('['):
			stack = append(stack, level{})
			d.deep = d.deep || len(stack) > MaxDepth
			continue
		case json.Delim('}'), json.Delim(']'):
			stack = stack[:top]
			top--
		}
		if top >= 0 && stack[top].keys != nil {
			stack[top].key = true
		}
	}
}

func FuzzCheck(f *testing.F) {
	for _, seed := range []string{
		`{}`, `[]`, `null`, `"x"`, `1e999`, `{"a":1,"a":2}`, `{"a":1,"\u0061":2}`, `{"a":"\u0000"}`, `"\ud800"`, `"\ud83d\ude00"`,
		`"\ud800\u0041"`, `"\ud800\\u"`, `{"a":{"b":[1,{"c":null}]}}`, "{\"a\":\"\xff\"}", "\"\xed\xa0\x80\"", `"\uFFFD"`, "\"\uFFFD\"",
		strings.Repeat("[", 33) + strings.Repeat("]", 33), ` [ 1 , "," , "]" , { "}" : "{" } ] `, `{"a"`, `"\`, `"\ud800\`, ``,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		err := CheckStorable(raw)
		if !json.Valid(raw) || !utf8.Valid(raw) {
			if err == nil {
				t.Fatalf("took %q", raw)
			}
			return
		}
		d := findDefects(t, raw)
		if must := d.deep || d.twice || d.nul; must && err == nil {
			t.Errorf("took %q: %+v", raw, d)
		} else if !must && !d.replaced && err != nil {
			t.Errorf("refused %q: %v", raw, err)
		}
	})
}

func TestNumbersKeepTheirDigits(t *testing.T) {
	const digits = `{"n":12345678901234567890,"f":0.1000,"e":1E400}`
	raw, err := EncodeValue(json.RawMessage(digits))
	if err != nil || string(raw) != digits {
		t.Fatalf("got %s, %v", raw, err)
	}
	p, _ := ParamOf(reflect.TypeFor[Named]())
	v, err := p.Bind(raw)
	if err != nil {
		t.Fatal(err)
	}
	want := Named{"n": json.Number("12345678901234567890"), "f": json.Number("0.1000"), "e": json.Number("1E400")}
	if got := v.Interface(); !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
