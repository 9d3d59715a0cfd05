package compat

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"gorm.io/gorm"
	"gorm.io/plugin/dbresolver"

	"github.com/gorm-outbox/outbox"
	"github.com/gorm-outbox/outbox/internal/dbtest"
)

// resolved opens a primary with a replica that is another, empty database: whatever is sent there
// fails, or finds nothing.
func resolved(t *testing.T, d database, config gorm.Config, order string) (db, replica *gorm.DB, p *outbox.Plugin) {
	t.Helper()
	dsn := d.dsn(t)
	replica = d.openDSN(t, dsn, nil)
	db = d.open(t, &config)
	resolver := dbresolver.Register(dbresolver.Config{Replicas: []gorm.Dialector{d.dialector(dsn)}})
	p = newPlugin(db, outbox.Options{})
	plugins := []gorm.Plugin{p, resolver}
	if order == "after" {
		plugins = []gorm.Plugin{resolver, p}
	}
	for _, plugin := range plugins {
		if err := db.Use(plugin); err != nil {
			t.Fatal(err)
		}
	}
	closePools(t, resolver)
	if err := p.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The application reads its orders on the primary; AutoMigrate would look for them on the
	// replica.
	for _, on := range []*gorm.DB{db.Clauses(dbresolver.Write), replica} {
		if err := on.AutoMigrate(&orderTable{}); err != nil {
			t.Fatal(err)
		}
	}
	return db, replica, p
}

type orderTable order

func (orderTable) TableName() string { return "orders" }

// closePools closes what dbresolver has opened.
func closePools(t testing.TB, r *dbresolver.DBResolver) {
	t.Helper()
	t.Cleanup(func() {
		err := r.Call(func(pool gorm.ConnPool) error {
			if closer, ok := pool.(interface{ Close() error }); ok {
				return closer.Close()
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
}

// eachOrder runs a test with the plugins used in either order, with and without prepared
// statements.
func eachOrder(t *testing.T, test func(t *testing.T, db, replica *gorm.DB, p *outbox.Plugin)) {
	t.Helper()
	eachDB(t, func(t *testing.T, d database) {
		for _, order := range []string{"before", "after"} {
			for _, prepare := range []bool{false, true} {
				t.Run(fmt.Sprintf("used %s dbresolver, PrepareStmt %v", order, prepare), func(t *testing.T) {
					db, replica, p := resolved(t, d, gorm.Config{PrepareStmt: prepare}, order)
					test(t, db, replica, p)
				})
			}
		}
	})
}

// dbresolver initialises every plugin again, with the replica's DB.
func TestResolverBindsThePrimary(t *testing.T) {
	eachOrder(t, func(t *testing.T, db, replica *gorm.DB, p *outbox.Plugin) {
		for model, where := range map[any]string{&outbox.TaskModel{}: "tasks", &outbox.HistoryModel{}: "history"} {
			if replica.Migrator().HasTable(model) {
				t.Errorf("the replica has a table of %s", where)
			}
			if !db.Clauses(dbresolver.Write).Migrator().HasTable(model) {
				t.Errorf("the primary has no table of %s", where)
			}
		}
		var n int64
		if err := db.Model(&outbox.TaskModel{}).Count(&n).Error; err == nil {
			t.Fatal("the application's reads do not go to the replica, so the test shows nothing")
		}
	})
}

func TestResolverSendsNothingToTheReplica(t *testing.T) {
	eachOrder(t, func(t *testing.T, db, replica *gorm.DB, p *outbox.Plugin) {
		dbtest.Start(t, p)
		for _, path := range []string{update, updateTx} {
			o, task := place(t, db, path, path)
			if past := dbtest.Ended(t, db, task.ID); past.Status != outbox.StatusSuccess {
				t.Errorf("%s ended as %s: %s", path, past.Status, deref(past.Error))
			}
			wantStatus(t, db.Clauses(dbresolver.Write), o.ID, path)
		}
		// Outside of a transaction the handle's connection is the primary's too.
		alone := dbtest.Create(t, db, fail, orderArgs{})
		if past := dbtest.Ended(t, db, alone.ID); past.Status != outbox.StatusError {
			t.Errorf("ended as %s", past.Status)
		}
		if n := dbtest.Count(t, replica, &order{}); n != 0 {
			t.Errorf("%d orders on the replica", n)
		}
	})
}

// What a transactional handler reads, it reads in its transaction.
func TestResolverHandlerReadsThePrimary(t *testing.T) {
	eachDB(t, func(t *testing.T, d database) {
		dsn := d.dsn(t)
		d.openDSN(t, dsn, nil)
		db := d.open(t, nil)
		p := newPlugin(db, outbox.Options{})
		p.Handle("orders.read", func(_ context.Context, tx *gorm.DB, a orderArgs) (string, error) {
			var o order
			err := tx.Where("id = ?", a.ID).Take(&o).Error
			return o.Item, err
		})
		resolver := dbresolver.Register(dbresolver.Config{Replicas: []gorm.Dialector{d.dialector(dsn)}})
		if err := db.Use(p); err != nil {
			t.Fatal(err)
		}
		migrate(t, db, p)
		if err := db.Use(resolver); err != nil {
			t.Fatal(err)
		}
		closePools(t, resolver)
		dbtest.Start(t, p)
		_, task := place(t, db, "orders.read", "")
		if past := dbtest.Ended(t, db, task.ID); past.Status != outbox.StatusSuccess || past.Result.String() != `"pen"` {
			t.Errorf("ended as %s, result %s: %s", past.Status, past.Result, deref(past.Error))
		}
	})
}

// A handle that a query has returned is bound to the replica that answered it.
func TestResolverDirtyHandles(t *testing.T) {
	eachOrder(t, func(t *testing.T, db, replica *gorm.DB, p *outbox.Plugin) {
		dbtest.Start(t, p)
		for name, handle := range map[string]*gorm.DB{
			"returned by Find": db.Find(&[]order{}),
			"told to read":     db.Clauses(dbresolver.Read),
			"with a Model":     db.Model(&order{}).Where("id = ?", 1),
		} {
			t.Run(name, func(t *testing.T) {
				task, err := outbox.Create(handle, fail, orderArgs{})
				if err != nil {
					t.Fatal(err)
				}
				if _, _, err := outbox.Lookup(handle, task.ID); err != nil {
					t.Errorf("look up: %v", err)
				}
				dbtest.Ended(t, db, task.ID)
				if err := outbox.Cancel(handle, task.ID); !errors.Is(err, outbox.ErrNotFound) {
					t.Errorf("cancel: %v, want ErrNotFound", err)
				}
			})
		}
	})
}

// With sources, too, the plugin's database is the one that the *gorm.DB was opened on.
func TestResolverSources(t *testing.T) {
	eachDB(t, func(t *testing.T, d database) {
		source := d.dsn(t)
		elsewhere := d.openDSN(t, source, nil)
		db := d.open(t, nil)
		p := install(t, db, outbox.Options{})
		resolver := dbresolver.Register(dbresolver.Config{Sources: []gorm.Dialector{d.dialector(source)}}, "audits")
		if err := db.Use(resolver); err != nil {
			t.Fatal(err)
		}
		closePools(t, resolver)
		round(t, db, p)
		if elsewhere.Migrator().HasTable(&outbox.TaskModel{}) {
			t.Error("the source has tables")
		}
		// A transaction that was begun on a source of another database cannot hold a task, and says
		// so. In another schema of the same database it can: the task lands where the dispatcher
		// looks, if the transaction commits.
		tx := db.Clauses(dbresolver.Use("audits"), dbresolver.Write).Begin()
		defer tx.Rollback()
		task, err := outbox.Create(tx, update, orderArgs{})
		if db.Name() == "sqlite" {
			if !errors.Is(err, outbox.ErrSchema) {
				t.Errorf("create on the source: %v, want ErrSchema", err)
			}
			return
		}
		if err != nil {
			t.Fatalf("create on the source: %v", err)
		}
		if _, _, err := outbox.Lookup(db, task.ID); !errors.Is(err, outbox.ErrNotFound) {
			t.Errorf("before the commit: %v, want ErrNotFound", err)
		}
		if err := tx.Commit().Error; err != nil {
			t.Fatal(err)
		}
		if _, _, err := outbox.Lookup(db, task.ID); err != nil {
			t.Errorf("after the commit: %v", err)
		}
		if elsewhere.Migrator().HasTable(&outbox.TaskModel{}) {
			t.Error("the source has tables")
		}
	})
}
