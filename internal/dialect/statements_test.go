package dialect

import (
	"math"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"
)

// plain names: what GORM's naming strategy makes of an index.
func plain(prefix string) Names {
	return Names{
		Tasks: prefix + "tasks", History: prefix + "history", Processes: prefix + "processes",
		Audit: prefix + "audit", Version: prefix + "schema",
		Index: func(table, what string) string { return "idx_" + strings.ReplaceAll(table, ".", "_") + "_" + what },
	}
}

func eachDialect(t *testing.T, clock func() time.Time, names Names, test func(t *testing.T, d Dialect)) {
	t.Helper()
	for _, name := range Supported() {
		d, err := New(name, names, clock)
		if err != nil {
			t.Fatal(err)
		}
		t.Run(name, func(t *testing.T) {
			if d.Name() != name {
				t.Errorf("it calls itself %s", d.Name())
			}
			test(t, d)
		})
	}
}

// statements are the rendered ones, by the names of their fields.
func statements(d Dialect) map[string]string {
	out := map[string]string{}
	v := reflect.Indirect(reflect.ValueOf(d))
	for i := range v.NumField() {
		if v.Field(i).Kind() == reflect.String {
			out[v.Type().Field(i).Name] = v.Field(i).String()
		}
	}
	return out
}

func TestUnsupported(t *testing.T) {
	_, err := New("oracle", plain(""), nil)
	if err == nil || err.Error() != `database "oracle" is not supported; supported are mysql, postgres, sqlite` {
		t.Errorf("got %v", err)
	}
}

func TestEveryPlaceholderIsFilled(t *testing.T) {
	left := regexp.MustCompile(`\{[a-z+.-]*\}`)
	eachDialect(t, nil, plain("app_"), func(t *testing.T, d Dialect) {
		all := statements(d)
		if len(all) < 10 {
			t.Errorf("only %d statements", len(all))
		}
		for name, text := range all {
			if text == "" || left.MatchString(text) {
				t.Errorf("%s: %q is left in %s", name, left.FindString(text), text)
			}
		}
		for _, text := range append(d.Schema(), d.Rebind("SELECT {columns}, {t.columns} FROM {tasks}, {history}, {processes}, {audit}, {version} WHERE {now}"), d.Now(), d.Instant()) {
			if text == "" || left.MatchString(text) {
				t.Errorf("%q is left in %s", left.FindString(text), text)
			}
		}
	})
}

// A statement whose text changed with the time or the number of rows would be prepared again and
// again.
func TestStatementTextsAreConstant(t *testing.T) {
	number := regexp.MustCompile(`20[2-9][0-9]-`)
	eachDialect(t, nil, plain(""), func(t *testing.T, d Dialect) {
		again, err := New(d.Name(), plain(""), nil)
		if err != nil {
			t.Fatal(err)
		}
		second := statements(again)
		for name, text := range statements(d) {
			if text != second[name] || number.MatchString(text) {
				t.Errorf("%s: %s", name, text)
			}
		}
	})
}

func TestTestClockIsALiteral(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 678901000, time.FixedZone("", 3600))
	eachDialect(t, func() time.Time { return now }, plain(""), func(t *testing.T, d Dialect) {
		const want = "2026-01-02 02:04:05.678901"
		if got := d.Rebind("UPDATE {tasks} SET run_at = {now} WHERE id = ?"); !strings.Contains(got, want) {
			t.Errorf("%s is not in %s", want, got)
		}
		now = now.Add(time.Hour)
		if got := d.Rebind("{now}"); !strings.Contains(got, "03:04:05") {
			t.Errorf("the clock stands still: %s", got)
		}
		now = now.Add(-time.Hour)
	})
}

func TestRebind(t *testing.T) {
	for name, want := range map[string]string{
		"postgres": `SELECT id FROM "s"."tasks" WHERE a = $1 AND b = $2`,
		"sqlite":   `SELECT id FROM "s"."tasks" WHERE a = ? AND b = ?`,
		"mysql":    "SELECT id FROM `s`.`tasks` WHERE a = ? AND b = ?",
	} {
		d, err := New(name, plain("s."), nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := d.Rebind("SELECT id FROM {tasks} WHERE a = ? AND b = ?"); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestNamesAreQuoted(t *testing.T) {
	eachDialect(t, nil, plain(`we"ird.my `), func(t *testing.T, d Dialect) {
		want := `"we""ird"."my tasks"`
		if d.Name() == "mysql" {
			want = "`we\"ird`.`my tasks`"
		}
		if got := d.Rebind("{tasks}"); got != want {
			t.Errorf("got %s", got)
		}
	})
}

func TestSchema(t *testing.T) {
	for _, prefix := range []string{"outbox_", "s.outbox_"} {
		eachDialect(t, nil, plain(prefix), func(t *testing.T, d Dialect) {
			list := d.Schema()
			for _, s := range list {
				if strings.HasSuffix(s, ";") || !regexp.MustCompile(`^(CREATE (UNIQUE )?(TABLE|INDEX) IF NOT EXISTS|INSERT INTO) `).MatchString(s) {
					t.Errorf("not one repeatable statement: %s", s)
				}
			}
			text := strings.Join(list, "\n")
			indexes := 7
			if d.Name() == "mysql" {
				indexes = 5
			}
			if n := strings.Count(text, "INDEX "); n != indexes || strings.Count(text, "CREATE TABLE") != 5 {
				t.Errorf("%d indexes; five tables have %d: %s", n, indexes, text)
			}
			for _, column := range Columns {
				if !regexp.MustCompile("\n +`?" + column + "`? ").MatchString(text) {
					t.Errorf("no column %s", column)
				}
			}
		})
	}
}

func TestMicros(t *testing.T) {
	for d, want := range map[time.Duration]int64{
		0: 0, 1: 1, time.Microsecond: 1, time.Microsecond + 1: 2, time.Second: 1_000_000,
		math.MaxInt64: math.MaxInt64/1000 + 1,
	} {
		if got := Micros(d); got != want {
			t.Errorf("%d ns: got %d µs, want %d", d, got, want)
		}
	}
}

func TestTimesCompareAsTheyAre(t *testing.T) {
	tokyo := time.FixedZone("", 9*3600)
	angeles := time.FixedZone("", -8*3600)
	early := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	eachDialect(t, nil, plain(""), func(t *testing.T, d Dialect) {
		if a, b := d.Time(early.In(tokyo)), d.Time(early.In(angeles)); a != b {
			t.Errorf("one instant is %s and %s", a, b)
		}
		if a, b := d.Time(early.In(tokyo)), d.Time(early.Add(time.Microsecond).In(angeles)); a >= b {
			t.Errorf("%s does not come before %s", a, b)
		}
	})
}

func TestList(t *testing.T) {
	if list(nil) != nil || list([]string{}) != nil || list([]string{"a"}) != `["a"]` {
		t.Errorf("got %v, %v, %v", list(nil), list([]string{}), list([]string{"a"}))
	}
	if encode(nonNil(nil)) != "[]" {
		t.Errorf("got %s", encode(nonNil(nil)))
	}
}

func TestJSONType(t *testing.T) {
	if JSONType("postgres") != "json" || JSONType("sqlite") != "text" || JSONType("mysql") != "longtext" {
		t.Error("JSON must be stored as it was given: json, not jsonb; text elsewhere")
	}
}
