package outbox_test

import (
	"bytes"
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

// What Create takes is read back as it was given: from the task table, and from history. What it
// refuses leaves no row. On SQLite only, where thousands of rows a second can be tried: most of
// what is found is in checks that all databases share. What a server makes of odd values is the
// tables' of values_test.go.
func FuzzStoredRow(f *testing.F) {
	at := time.Date(2031, 3, 4, 5, 6, 7, 0, time.UTC).UnixMicro()
	for _, args := range []string{
		`{}`, `{"n":9007199254740993,"f":1.50,"e":1E400,"m":-0}`, `{"a":"\u2028\ud83d\ude00\\u0000","A":null}`, `{"a":1,"a":2}`,
		` { "x" : [ 1 , {} ] } `, `{"%?$1":"{tasks} ? $1 :a @b"}`, `{"<":"&>","é":"é"}`, `[]`, `{"a":"\u0000"}`, "{\"a\":\"\xff\"}",
	} {
		f.Add(args, "key", "queue", 2, 1, int64(0), at)
	}
	f.Add(`{}`, "é'\"?{now}\\", "q ' ?", 4, 10_000, int64(1500), int64(1))
	f.Add(`{}`, "a\x00b", "\xff", 5, 0, int64(-1), int64(-1<<62))
	db := testdb.SQLite(f)
	p := outbox.New(outbox.Options{ProducerOnly: true})
	if err := db.Use(p); err != nil {
		f.Fatal(err)
	}
	if err := p.Migrate(f.Context()); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, args, key, queue string, priority, attempts int, timeout, start int64) {
		tx := db.Begin()
		defer tx.Rollback()
		opts := []outbox.CreateOption{outbox.Key(key), outbox.Queue(queue), outbox.Priority(priority), outbox.MaxAttempts(attempts),
			outbox.StartAt(time.UnixMicro(start))}
		if timeout > -1<<40 && timeout < 1<<40 {
			opts = append(opts, outbox.Timeout(time.Duration(timeout)*time.Millisecond))
		} else {
			timeout = 0
		}
		task, err := outbox.Create(tx, "f", json.RawMessage(args), opts...)
		if err != nil {
			if n := dbtest.Count(t, tx, &outbox.TaskModel{}); n != 0 {
				t.Fatalf("refused with %v, but there are %d rows", err, n)
			}
			return
		}
		got, _, err := outbox.Lookup(tx, task.ID)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, task) {
			t.Errorf("created\n%+v, read\n%+v", task, got)
		}
		if *got.Key != key || got.Queue != queue || got.Priority != priority || got.MaxAttempts != attempts || got.TimeoutMS != timeout {
			t.Errorf("%+v", got)
		}
		if at := time.UnixMicro(start); at.After(time.Now()) && !got.RunAt.Equal(at) || got.RunAt.Before(at) && at.Before(time.Now()) {
			t.Errorf("starts at %v, want %v", got.RunAt, at)
		}
		if !reflect.DeepEqual(document(t, got.Args), document(t, []byte(args))) {
			t.Errorf("arguments %s became %s", args, got.Args)
		}
		if err := outbox.Cancel(tx, task.ID); err != nil {
			t.Fatal(err)
		}
		_, past, err := outbox.Lookup(tx, task.ID)
		if err != nil {
			t.Fatal(err)
		}
		if past.Args.String() != got.Args.String() || *past.Key != key || past.Queue != queue || past.Priority != priority ||
			past.MaxAttempts != attempts || past.TimeoutMS != timeout || !past.RunAt.Equal(got.RunAt) || !past.CreatedAt.Equal(got.CreatedAt) {
			t.Errorf("%+v became %+v", got, past)
		}
	})
}

// document is JSON with every digit of its numbers.
func document(t *testing.T, raw []byte) (v any) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%q: %v", raw, err)
	}
	return v
}
