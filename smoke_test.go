package outbox_test

import (
	"context"
	"testing"
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/testutil"
)

func TestSmoke(t *testing.T) {
	for name, open := range map[string]func(testing.TB) *gorm.DB{"sqlite": testutil.SQLite, "postgres": testutil.Postgres} {
		t.Run(name, func(t *testing.T) {
			db := open(t)
			p := outbox.New(outbox.Options{})
			got := make(chan outbox.Args, 10)
			p.Handle("a.b", func(ctx context.Context, a outbox.Args) (string, error) { got <- a; return "ok", nil })
			p.Handle("a.tx", func(ctx context.Context, tx *gorm.DB) error { got <- nil; return tx.Exec("create table x(i int)").Error })
			if err := db.Use(p); err != nil {
				t.Fatal(err)
			}
			if err := p.Migrate(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := p.Migrate(t.Context()); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error)
			go func() { done <- p.Run(ctx) }()
			id, err := outbox.Create(db, "a.b", outbox.Args{"x": uint64(12345678901234567890)})
			if err != nil {
				t.Fatal(err)
			}
			t.Log(id)
			begin := time.Now()
			t.Log(<-got, time.Since(begin))
			_, err = outbox.Create(db, "a.tx", nil, outbox.StartAfter(300*time.Millisecond))
			if err != nil {
				t.Fatal(err)
			}
			begin = time.Now()
			<-got
			t.Log(time.Since(begin))
			cancel()
			t.Log(<-done)
			_, h, err := outbox.Lookup(db, id.ID)
			t.Logf("%+v %v %s", h, err, h.Result)
		})
	}
}
