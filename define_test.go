package outbox_test

import (
	"context"
	"testing"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
)

// Typed handlers can return a result, which history keeps.
func TestTypedResults(t *testing.T) {
	type args struct{ N int }
	type double struct{ Twice int }
	plain, inTx := outbox.Define[args]("plain"), outbox.Define[args]("tx")
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		p := dbtest.Install(t, db, quick(), func(p *outbox.Plugin) {
			outbox.HandleResult(plain, p, func(_ context.Context, a args) (double, error) { return double{2 * a.N}, nil })
			outbox.HandleTxResult(inTx, p, func(_ context.Context, _ *gorm.DB, a args) (*double, error) { return &double{2 * a.N}, nil })
		})
		for _, d := range []outbox.Definition[args]{plain, inTx} {
			task, err := d.Create(db, args{21})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := p.RunDue(t.Context()); err != nil {
				t.Fatal(err)
			}
			if past := dbtest.Ended(t, db, task.ID); past.Func != d.Function() || past.Result.String() != `{"Twice":42}` {
				t.Errorf("%s: %s with %s", past.Func, past.Status, past.Result)
			}
		}
	})
}
