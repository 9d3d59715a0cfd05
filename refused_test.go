package outbox_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
	"github.com/gorm-outbox/outbox/internal/dialect"
)

type dataError struct{}

func (dataError) Error() string    { return "these bytes are not text" }
func (dataError) SQLState() string { return "22021" }

// picky refuses outcomes for a text of theirs.
type picky struct{ dialect.Dialect }

func (d picky) Move(ctx context.Context, c dialect.Conn, from dialect.From, rows []dialect.Outcome) ([]string, error) {
	for _, o := range rows {
		if o.Error != nil && *o.Error == "poison" {
			return nil, dataError{}
		}
	}
	return d.Dialect.Move(ctx, c, from, rows)
}

func TestRefusedTextIsReplaced(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, db *gorm.DB) {
		p := dbtest.Install(t, db, quick(), func(p *outbox.Plugin) {
			p.Handle("fails", func(context.Context) error { return errors.New("poison") })
		})
		p.Intercept(func(d dialect.Dialect) dialect.Dialect { return picky{d} })
		dbtest.Start(t, p)
		h := dbtest.Ended(t, db, dbtest.Create(t, db, "fails", nil).ID)
		if h.Status != outbox.StatusError || h.Reason != outbox.ReasonFailed || !strings.Contains(text(h.Error), "refused by the database") {
			t.Errorf("%+v, %s", h, text(h.Error))
		}
	})
}
