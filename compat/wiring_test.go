package compat

import (
	"context"
	"errors"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.uber.org/fx"
	"gorm.io/gen"
	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
)

// fxRecipe is the one of docs/operations.md.
func fxRecipe(lc fx.Lifecycle, shutdown fx.Shutdowner, plugin *outbox.Plugin) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	lc.Append(fx.Hook{
		OnStart: func(context.Context) error { // its context ends when OnStart has returned
			go func() {
				ended <- plugin.Run(ctx)
				shutdown.Shutdown() // Run ends early when the tables are not right
			}()
			return nil
		},
		OnStop: func(stop context.Context) error {
			cancel()
			select {
			case err := <-ended:
				return err
			case <-stop.Done():
				return stop.Err()
			}
		},
	})
}

// A handler that needs longer than fx's own fifteen seconds has its grace, and its end is recorded
// before fx has stopped.
func TestFx(t *testing.T) {
	d := mattn
	db := d.open(t, nil)
	begun, release := make(chan struct{}), make(chan struct{})
	p := outbox.New(outbox.Options{})
	p.Handle("slow", func(context.Context, outbox.Args) error {
		close(begun)
		<-release
		return nil
	})
	if err := errors.Join(db.Use(p), p.Migrate(t.Context())); err != nil {
		t.Fatal(err)
	}
	app := fx.New(fx.NopLogger, fx.StopTimeout(30*time.Second), fx.Supply(p), fx.Invoke(fxRecipe))
	if err := app.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	task, err := outbox.Create(db, "slow", nil)
	if err != nil {
		t.Fatal(err)
	}
	<-begun
	stopped := make(chan error, 1)
	go func() { stopped <- app.Stop(context.Background()) }()
	close(release)
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	if _, past, err := outbox.Lookup(db, task.ID); err != nil || past == nil || past.Status != outbox.StatusSuccess {
		t.Errorf("ended as %+v, %v", past, err)
	}
	if fx.DefaultTimeout != 15*time.Second {
		t.Errorf("fx stops after %s, docs/operations.md says fifteen seconds", fx.DefaultTimeout)
	}
}

func TestFxRecipeIsQuoted(t *testing.T) {
	code, err := os.ReadFile("wiring_test.go")
	doc, docErr := os.ReadFile("../docs/operations.md")
	if err := errors.Join(err, docErr); err != nil {
		t.Fatal(err)
	}
	recipe := regexp.MustCompile(`(?s)\nfunc fxRecipe\(.*?\n}\n`).FindString(string(code))
	if recipe == "" || !strings.Contains(string(doc), "```go fx"+recipe+"```\n") {
		t.Errorf("docs/operations.md does not quote\n%s", recipe)
	}
}

// gorm/gen keeps its handle to itself: UnderlyingDB gives the transaction of a query.
func TestGen(t *testing.T) {
	eachDB(t, func(t *testing.T, d database) {
		db := d.open(t, nil)
		install(t, db, outbox.Options{})
		undone := errors.New("rolled back")
		for _, want := range []error{nil, undone} {
			var id string
			err := db.Transaction(func(tx *gorm.DB) error { // as the Transaction of generated code does
				var orders gen.DO
				orders.UseDB(tx)
				orders.UseModel(order{})
				id = dbtest.Create(t, orders.WithContext(t.Context()).(*gen.DO).UnderlyingDB(), updateTx, orderArgs{1, "paid"}).ID
				return want
			})
			if !errors.Is(err, want) {
				t.Fatal(err)
			}
			live, _, err := outbox.Lookup(db, id)
			if found := err == nil && live != nil; found != (want == nil) {
				t.Errorf("after %v: the task is there: %v, %v", want, found, err)
			}
		}
	})
}
