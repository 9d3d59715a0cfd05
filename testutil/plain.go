package testutil

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"gorm.io/gorm"
	"gorm.io/gorm/callbacks"
	"gorm.io/gorm/logger"

	"github.com/gorm-outbox/outbox/internal/bridge"
)

// A test must see the tables as they are. A function that cannot work must say so.

// plain is a handle on db's connection without the application's callbacks and plugins. A plugin
// that caches, filters by tenant or drops errors would hide rows.
func plain(t testing.TB, db *gorm.DB) *gorm.DB {
	t.Helper()
	p, err := gorm.Open(plainDialector{db.Dialector}, &gorm.Config{
		ConnPool: db.Statement.ConnPool, NamingStrategy: db.NamingStrategy, Logger: logger.Discard,
		SkipDefaultTransaction: true, DisableAutomaticPing: true,
	})
	if err != nil {
		t.Fatalf("testutil: %v", err)
	}
	return p.WithContext(db.Statement.Context)
}

// plainDialector has its database's quoting and types, and GORM's own callbacks.
type plainDialector struct{ gorm.Dialector }

func (plainDialector) Initialize(db *gorm.DB) error {
	callbacks.RegisterDefaultCallbacks(db, &callbacks.Config{})
	return nil
}

// open has, by plugin, the transactions that have created tasks and may still be open.
var open struct {
	mu   sync.Mutex
	over map[any][]func() bool
}

// The root package calls bridge.Created. An application does not link this package, so the call
// costs it nothing.
func init() {
	bridge.Created = func(plugin any, over func() bool) {
		open.mu.Lock()
		defer open.mu.Unlock()
		if open.over == nil {
			open.over = map[any][]func() bool{}
		}
		open.over[plugin] = append(stillOpen(open.over[plugin]), over)
	}
}

func stillOpen(list []func() bool) []func() bool {
	return slices.DeleteFunc(list, func(over func() bool) bool { return over() })
}

// inTransaction reports whether a transaction is open that has created tasks.
func inTransaction(plugin any) bool {
	open.mu.Lock()
	defer open.mu.Unlock()
	left := stillOpen(open.over[plugin])
	if len(left) == 0 {
		delete(open.over, plugin)
		return false
	}
	open.over[plugin] = left
	return true
}

// drainable returns the reason if tasks cannot be run on a pool.
func drainable(db *gorm.DB) error {
	pool, err := db.DB()
	if err != nil {
		return err
	}
	driver := reflect.TypeOf(pool.Driver())
	if driver.Kind() == reflect.Pointer {
		driver = driver.Elem()
	}
	if strings.Contains(driver.PkgPath(), "txdb") {
		return fmt.Errorf("the pool's driver is %s (%s), all of whose connections are one transaction, so that the dispatcher and the handlers "+
			"would wait for each other: give this test a database of its own, as testutil/testdb does", driver, driver.PkgPath())
	}
	return nil
}
