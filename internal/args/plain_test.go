package args

import (
	"encoding/json"
	"math"
	"reflect"
	"testing"
	"testing/quick"
	"time"
)

type plainPart struct {
	Text  string            `json:"text"`
	Left  *int64            `json:"left,omitempty"`
	Pairs map[string]*int16 `json:"a<b&c"`
}

type plainArgs struct {
	B       bool
	I       int8
	U       uint64
	F       float32
	G       float64 `json:"g,omitzero"`
	Bytes   []byte
	Digits  [3]uint8
	Named   time.Duration
	Part    plainPart
	Parts   []plainPart
	Pointer **plainPart
	Hidden  map[string]string `json:"-"`
}

// What is not bound at Create must be such that it can be.
func TestPlainArgumentsFitTheirOwnType(t *testing.T) {
	p, ok := ParamOf(reflect.TypeFor[plainArgs]())
	if !ok || !p.plain {
		t.Fatal("it is not plain")
	}
	encoded := 0
	fits := func(a plainArgs) bool {
		raw, err := Encode(a, math.MaxInt)
		if err != nil {
			return true // refused, such as a NUL
		}
		encoded++
		if _, err := p.Bind(raw); err != nil {
			t.Errorf("%s: %v", raw, err)
			return false
		}
		return true
	}
	if !fits(plainArgs{}) || !fits(plainArgs{U: math.MaxUint64, F: math.MaxFloat32, G: -math.MaxFloat64, I: math.MinInt8, Named: math.MinInt64,
		Part: plainPart{Text: "\xff\u2028<&>\"\\"}}) {
		t.Fail()
	}
	if err := quick.Check(fits, &quick.Config{MaxCount: 300}); err != nil {
		t.Error(err)
	}
	if encoded < 20 {
		t.Errorf("only %d values could be encoded", encoded)
	}
}

func TestArgumentsOfAnotherTypeAreBound(t *testing.T) {
	p, ok := ParamOf(reflect.TypeFor[plainPart]())
	if !ok || !p.plain {
		t.Fatal("it is not plain")
	}
	for _, args := range []any{Named{"text": 5}, Named{}, struct{ Text string }{}, (*plainPart)(nil)} {
		raw, err := Encode(args, math.MaxInt)
		if err == nil {
			err = p.CheckFits(args, raw)
		}
		if err == nil {
			t.Errorf("%T, %s: accepted", args, raw)
		}
	}
}

func TestPlainTypes(t *testing.T) {
	type embedding struct{ plainPart }
	type unexported struct{ n int }
	type recursive struct{ Next []recursive }
	for _, tt := range []struct {
		args  any
		plain bool
	}{
		{plainArgs{}, true},
		{struct{ At time.Time }{}, true},
		{struct{ A, B plainPart }{}, true},
		{struct{}{}, true},
		{struct {
			N int `json:",string"`
		}{}, false},
		{struct{ V any }{}, false},
		{struct{ V []map[string]any }{}, false},
		{struct{ N json.Number }{}, false},
		{struct{ N json.RawMessage }{}, false},
		{struct{ At *halfTime }{}, false},
		{struct{ M map[int]int }{}, false},
		{struct{ F func() }{}, false},
		{embedding{}, false},
		{unexported{n: 1}, false},
		{recursive{}, false},
		{checkedArgs{}, false},
		{struct{ A checkedArgs }{}, true}, // only the whole is asked
	} {
		if got := Plain(reflect.TypeOf(tt.args)); got != tt.plain {
			t.Errorf("%T: %v", tt.args, got)
		}
	}
}

// halfTime encodes itself, and is decoded by the rules.
type halfTime struct{ T int }

func (halfTime) MarshalText() ([]byte, error) { return []byte("x"), nil }

type checkedArgs struct{ N int }

func (*checkedArgs) Validate() error { return nil }
