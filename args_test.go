package outbox_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

type parcel struct {
	To     string         `json:"to"`
	Grams  int64          `json:"grams"`
	Note   *string        `json:"note"`
	Labels map[string]any `json:"labels,omitempty"`
}

type failing struct{}

func (failing) MarshalJSON() ([]byte, error) { return nil, errors.New("cannot say") }

func nested(depth int) any {
	var v any = 1
	for range depth - 1 {
		v = []any{v}
	}
	return outbox.Args{"deep": v}
}

func TestArgsTravelUnchanged(t *testing.T) {
	t.Parallel()
	limit := strings.Repeat("x", 64<<10-len(`{"s":""}`))
	tests := map[string]struct {
		args any
		want string // stored; and what the handler decodes, by its value
	}{
		"nil":                     {nil, `{}`},
		"nil Args":                {outbox.Args(nil), `{}`},
		"nil pointer":             {(*parcel)(nil), `{}`},
		"empty struct":            {struct{}{}, `{}`},
		"struct":                  {parcel{To: "Zoë", Grams: 1<<53 + 1}, `{"to":"Zoë","grams":9007199254740993,"note":null}`},
		"pointer":                 {&parcel{Grams: math.MinInt64}, `{"to":"","grams":-9223372036854775808,"note":null}`},
		"map of strings":          {map[string]string{"a": "b"}, `{"a":"b"}`},
		"raw":                     {json.RawMessage(" {\"a\" : [1, 2 ,\n{}] } "), `{"a":[1,2,{}]}`},
		"bytes":                   {[]byte(`{"a":1}`), `{"a":1}`},
		"JSON of a column":        {outbox.JSON(`{"a":1}`), `{"a":1}`},
		"2^53+1":                  {outbox.Args{"n": 1<<53 + 1}, `{"n":9007199254740993}`},
		"uint64":                  {outbox.Args{"n": uint64(12345678901234567890)}, `{"n":12345678901234567890}`},
		"nested 2^53+1":           {outbox.Args{"a": []any{outbox.Args{"n": 1<<53 + 1}}}, `{"a":[{"n":9007199254740993}]}`},
		"a number beyond float64": {json.RawMessage(`{"n":1e400,"m":123456789012345678901234567890.10}`), `{"n":1e400,"m":123456789012345678901234567890.10}`},
		"odd numbers":             {json.RawMessage(`{"a":-0,"b":1.10,"c":1E+2,"d":0.1e-7}`), `{"a":-0,"b":1.10,"c":1E+2,"d":0.1e-7}`},
		"json.Number":             {outbox.Args{"n": json.Number("10000000000000000000001")}, `{"n":10000000000000000000001}`},
		"emoji":                   {outbox.Args{"😀": "日本 😀 ñ"}, `{"😀":"日本 😀 ñ"}`},
		"an escaped pair":         {json.RawMessage(`{"s":"\ud83d\ude00"}`), `{"s":"\ud83d\ude00"}`},
		"no escaping of HTML":     {outbox.Args{"s": "<a href='x'>&</a>"}, `{"s":"<a href='x'>&</a>"}`},
		"what SQL would notice":   {outbox.Args{"s": "? $1 {tasks} {now} %s '; --"}, `{"s":"? $1 {tasks} {now} %s '; --"}`},
		"control characters":      {outbox.Args{"s": "\x01\t\"\\\u2028"}, `{"s":"\u0001\t\"\\\u2028"}`},
		"the depth that fits":     {nested(32), `{"deep":` + strings.Repeat("[", 31) + `1` + strings.Repeat("]", 31) + `}`},
		"the size that fits":      {outbox.Args{"s": limit}, `{"s":"` + limit + `"}`},
		"keys of two cases":       {json.RawMessage(`{"a":1,"A":2}`), `{"a":1,"A":2}`},
	}
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		got := make(chan outbox.Args, 1)
		p := dbtest.Install(t, db, outbox.Options{}, func(p *outbox.Plugin) {
			p.Handle(cancelOrder, func(_ context.Context, args outbox.Args) error {
				got <- args
				return nil
			})
		})
		for name, tt := range tests {
			t.Run(name, func(t *testing.T) {
				task := dbtest.Create(t, db, cancelOrder, tt.args)
				stored, _, err := outbox.Lookup(db, task.ID)
				if err != nil || task.Args.String() != tt.want || stored.Args.String() != tt.want {
					t.Fatalf("returned %.200s\nstored %.200s\nwant %.200s\n%v", task.Args, stored.Args, tt.want, err)
				}
				var row outbox.TaskModel
				if err := db.Take(&row, "id = ?", task.ID).Error; err != nil || row.Args.String() != tt.want {
					t.Errorf("read with GORM: %.200s, %v", row.Args, err)
				}
				if n, err := p.RunDue(t.Context()); n != 1 || err != nil {
					t.Fatalf("%d ran, %v", n, err)
				}
				var want outbox.Args
				dec := json.NewDecoder(strings.NewReader(tt.want))
				dec.UseNumber()
				if err := dec.Decode(&want); err != nil {
					t.Fatal(err)
				}
				a, _ := json.Marshal(dbtest.Receive(t, got))
				b, _ := json.Marshal(want)
				if !bytes.Equal(a, b) {
					t.Errorf("the handler got %.200s, want %.200s", a, b)
				}
				if h := dbtest.Ended(t, db, task.ID); h.Args.String() != tt.want {
					t.Errorf("history has %.200s", h.Args)
				}
			})
		}
	})
}

func TestArgsThatAreRefused(t *testing.T) {
	cycle := map[string]any{}
	cycle["self"] = cycle
	raw := func(s string) any { return json.RawMessage(s) }
	const any, typed = "any", "typed"
	tests := map[string]struct {
		path string
		args interface{}
		says []string
	}{
		"NUL":                     {any, outbox.Args{"a": "x\x00y"}, []string{`key "a"`, `\u0000`}},
		"NUL, escaped":            {any, raw(`{"a":{"b":["\u0000"]}}`), []string{`key "a.b[0]"`, `\u0000`}},
		"NUL in a key":            {any, outbox.Args{"a\x00": 1}, []string{`\u0000`}},
		"half a pair, high":       {any, raw(`{"a":"\ud800"}`), []string{`key "a"`, `\ud800`, "surrogate"}},
		"half a pair, low":        {any, raw(`{"a":"\udc00"}`), []string{`key "a"`, `\udc00`, "surrogate"}},
		"half a pair, then text":  {any, raw(`{"a":"\ud800\u0041"}`), []string{`key "a"`, "surrogate"}},
		"half a pair at the end":  {any, raw(`{"a":"\ud83d","b":"\ude00"}`), []string{`key "a"`, "surrogate"}},
		"a key twice":             {any, raw(`{"a":1,"b":2,"a":3}`), []string{`key "a"`, "twice"}},
		"a key twice, escaped":    {any, raw(`{"a":1,"\u0061":2}`), []string{`key "a"`, "twice"}},
		"a key twice, inside":     {any, raw(`{"o":[{"a":1,"a":2}]}`), []string{`key "o[0].a"`, "twice"}},
		"too deep":                {any, nested(33), []string{`key "deep`, "32 levels"}},
		"absurdly deep":           {any, raw(`{"a":` + strings.Repeat("[", 20000) + strings.Repeat("]", 20000) + `}`), nil},
		"too large":               {any, outbox.Args{"s": strings.Repeat("x", 64<<10)}, []string{"65544 bytes", "65536", "MaxArgs"}},
		"an array":                {any, []int{1}, []string{"not a JSON object", "an array"}},
		"a string":                {any, `{"a":1}`, []string{"not a JSON object", "a string"}},
		"a number":                {any, 7, []string{"not a JSON object", "a number"}},
		"a boolean":               {any, true, []string{"not a JSON object", "a boolean"}},
		"NaN":                     {any, outbox.Args{"a": math.NaN()}, []string{"NaN"}},
		"infinity":                {any, outbox.Args{"a": math.Inf(1)}, []string{"Inf"}},
		"a channel":               {any, outbox.Args{"a": make(chan int)}, []string{"chan int"}},
		"a function":              {any, func() {}, []string{"func()"}},
		"a cycle":                 {any, cycle, []string{"cycle"}},
		"a marshaler that fails":  {any, failing{}, []string{"cannot say"}},
		"no JSON":                 {any, raw(`{"a":}`), nil},
		"cut off":                 {any, raw(`{"a":1`), nil},
		"two documents":           {any, raw(`{} {}`), nil},
		"nothing":                 {any, raw(``), nil},
		"invalid UTF-8":           {any, raw("{\"a\":\"\xff\"}"), []string{"UTF-8"}},
		"a key of no field":       {typed, outbox.Args{"to": "x", "grams": 1, "weight": 2}, []string{`key "weight"`, "to, grams, note, labels"}},
		"a key of another case":   {typed, outbox.Args{"To": "x", "grams": 1}, []string{`key "To"`, `"to"`, "case"}},
		"a key that is missing":   {typed, outbox.Args{"to": "x"}, []string{`key "grams"`, "missing"}},
		"no keys at all":          {typed, nil, []string{`key "to"`, "missing"}},
		"a string for a number":   {typed, outbox.Args{"to": "x", "grams": "1"}, []string{`"grams"`, "string", "int64"}},
		"a fraction":              {typed, outbox.Args{"to": "x", "grams": 1.5}, []string{`"grams"`, "1.5", "int64"}},
		"a number that overflows": {typed, raw(`{"to":"x","grams":12345678901234567890}`), []string{`"grams"`, "12345678901234567890"}},
		"null for a number":       {typed, outbox.Args{"to": "x", "grams": nil}, []string{`key "grams"`, "null"}},
		"arguments for none":      {"none", outbox.Args{"a": 1}, []string{`key "a"`, "none"}},
	}
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		dbtest.Install(t, db, outbox.Options{}, func(p *outbox.Plugin) {
			p.Handle(any, func(context.Context, outbox.Args) error { return nil })
			p.Handle(typed, func(context.Context, parcel) error { return nil })
			p.Handle("none", func(context.Context) error { return nil })
		})
		if err := db.AutoMigrate(&shopOrder{}); err != nil {
			t.Fatal(err)
		}
		for name, tt := range tests {
			t.Run(name, func(t *testing.T) {
				err := db.Transaction(func(tx *gorm.DB) error {
					_, err := outbox.Create(tx, tt.path, tt.args)
					if !errors.Is(err, outbox.ErrBadArgs) {
						t.Fatalf("got %v, want ErrBadArgs", err)
					}
					for _, s := range append(tt.says, "create "+tt.path) {
						if !strings.Contains(err.Error(), s) {
							t.Errorf("%q does not say %q", err, s)
						}
					}
					if len(err.Error()) > 1000 {
						t.Errorf("the error has %d bytes", len(err.Error()))
					}
					return tx.Create(&shopOrder{}).Error
				})
				if err != nil || dbtest.Count(t, db, &outbox.TaskModel{}) != 0 {
					t.Errorf("not usable or something inserted: %v", err)
				}
			})
		}
	})
}

func TestUnknownFunc(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		dbtest.Install(t, db, outbox.Options{}, func(p *outbox.Plugin) {
			for _, path := range []string{cancelOrder, "services.OrderSvc.refund", "mail.send"} {
				p.Handle(path, func(context.Context) error { return nil })
			}
			p.Alias("orders.cancel", cancelOrder)
		})
		if err := db.AutoMigrate(&shopOrder{}); err != nil {
			t.Fatal(err)
		}
		for path, says := range map[string]string{
			"services.OrderSvc.cancle":     "did you mean " + cancelOrder,
			"services.orderSvc.Cancel":     "did you mean " + cancelOrder,
			"shop.billing.checkout.refund": "did you mean services.OrderSvc.refund",
			"maul.send":                    "did you mean mail.send",
			"warehouse":                    "none of them like it",
			"":                             "empty",
			"a..b":                         "empty part",
			".a":                           "empty part",
			"a b":                          `' '`,
			"a;DROP TABLE x":               `';'`,
			"a\x00":                        "not valid text",
			"\xff":                         "not valid text",
			strings.Repeat("x", 256):       "256 bytes",
		} {
			t.Run(path, func(t *testing.T) {
				err := db.Transaction(func(tx *gorm.DB) error {
					_, err := outbox.Create(tx, path, nil)
					if !errors.Is(err, outbox.ErrUnknownFunc) || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), path) {
						t.Errorf("got %v, want ErrUnknownFunc with %q", err, says)
					}
					if strings.HasPrefix(says, "did") && !strings.Contains(err.Error(), "ProducerOnly") {
						t.Errorf("%q does not tell of ProducerOnly", err)
					}
					return tx.Create(&shopOrder{}).Error
				})
				if err != nil || dbtest.Count(t, db, &outbox.TaskModel{}) != 0 {
					t.Errorf("not usable or something inserted: %v", err)
				}
			})
		}
		t.Run("an alias is known", func(t *testing.T) {
			if task := dbtest.Create(t, db, "orders.cancel", nil); task.Func != "orders.cancel" {
				t.Errorf("created %+v", task)
			}
		})
	})
}

func TestProducerOnly(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		dbtest.Install(t, db, outbox.Options{ProducerOnly: true}, func(p *outbox.Plugin) {
			p.Handle("known", func(context.Context, struct{ N int }) error { return nil })
		})
		t.Run("takes unregistered paths", func(t *testing.T) {
			task := dbtest.Create(t, db, "elsewhere.run", outbox.Args{"a": 1}, outbox.StartAfter(time.Hour))
			if !taskExists(t, db, task.ID) {
				t.Error("not inserted")
			}
		})
		t.Run("but no path without form, and no arguments that do not fit a registered one", func(t *testing.T) {
			if _, err := outbox.Create(db, "else where", nil); !errors.Is(err, outbox.ErrUnknownFunc) {
				t.Errorf("got %v", err)
			}
			if _, err := outbox.Create(db, "known", outbox.Args{"M": 1}); !errors.Is(err, outbox.ErrBadArgs) {
				t.Errorf("got %v", err)
			}
		})
	})
}

type byValue struct{ To string }

func (a byValue) Validate() error { return refuseEmpty(a.To) }

type byPointer struct{ To string }

func (a *byPointer) Validate() error { return refuseEmpty(a.To) }

func refuseEmpty(to string) error {
	if to == "" {
		return errors.New("to is empty")
	}
	return nil
}

// Where the handler is elsewhere, a task that it would refuse must not be created either.
func TestProducerValidates(t *testing.T) {
	db := testdb.SQLite(t)
	dbtest.Install(t, db, outbox.Options{ProducerOnly: true}, nil)
	value, pointer := outbox.Define[byValue]("a.value"), outbox.Define[byPointer]("a.pointer")
	for name, make := range map[string]func(to string) error{
		"Define, by value":   func(to string) error { _, err := value.Create(db, byValue{to}); return err },
		"Define, by pointer": func(to string) error { _, err := pointer.Create(db, byPointer{to}); return err },
		"New":                func(to string) error { _, err := outbox.CreateBatch(db, pointer.New(byPointer{to})); return err },
		"Create":             func(to string) error { _, err := outbox.Create(db, "a.value", byValue{to}); return err },
		"Create, a pointer":  func(to string) error { _, err := outbox.Create(db, "a.pointer", &byPointer{to}); return err },
	} {
		t.Run(name, func(t *testing.T) {
			if err := make(""); !errors.Is(err, outbox.ErrBadArgs) || !strings.Contains(err.Error(), "to is empty") {
				t.Errorf("got %v", err)
			}
			if err := make("ann"); err != nil {
				t.Error(err)
			}
		})
	}
}
