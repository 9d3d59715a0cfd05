package compat

import (
	"context"
	"database/sql"
	"fmt"
	"runtime"
	"strings"
	"testing"

	txdb "github.com/DATA-DOG/go-txdb"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
	"github.com/gorm-outbox/outbox/testutil"
	"github.com/gorm-outbox/outbox/testutil/testdb"
)

// fatal is a testing.TB that keeps how it was ended.
type fatal struct {
	testing.TB
	text string
}

func (f *fatal) Helper()                  {}
func (f *fatal) Context() context.Context { return context.Background() }
func (f *fatal) Fatalf(format string, args ...any) {
	f.text = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

// On go-txdb's pool, which is one transaction, Drain would hang; it says so. What was created can
// be looked at.
func TestDrainOnTxdb(t *testing.T) {
	dsn := testdb.PostgresDSN(t)
	install(t, pgx.openDSN(t, dsn, nil), outbox.Options{})
	db := openOn(t, sql.OpenDB(txdb.New("pgx", dsn)))
	p := newPlugin(db, outbox.Options{})
	if err := db.Use(p); err != nil {
		t.Fatal(err)
	}
	dbtest.Create(t, db, nothing, orderArgs{ID: 7})
	testutil.RequireCreated(t, db, nothing, outbox.Args{"id": 7})
	f := &fatal{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		testutil.Drain(f, p)
	}()
	<-done
	if !strings.Contains(f.text, "txdb.TxDriver") || !strings.Contains(f.text, "one transaction") {
		t.Errorf("Drain said %q", f.text)
	}
}
