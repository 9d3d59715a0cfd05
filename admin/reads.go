package admin

import (
	"maps"

	"gorm.io/gorm"
	"gorm.io/gorm/callbacks"
)

// plain is a dialector that registers GORM's own callbacks and no others.
type plain struct{ gorm.Dialector }

func (plain) Initialize(db *gorm.DB) error {
	callbacks.RegisterDefaultCallbacks(db, &callbacks.Config{})
	return nil
}

// plainReads is a handle on the same connections whose queries run no callbacks of the application.
// A callback may add a tenant to every query, or send it to a replica. The pages would then show
// fewer tasks than exist, or old states.
func plainReads(db *gorm.DB) (*gorm.DB, error) {
	return gorm.Open(plain{db.Dialector}, &gorm.Config{ConnPool: db.ConnPool, Logger: db.Logger, NamingStrategy: db.NamingStrategy,
		NowFunc: db.NowFunc, ClauseBuilders: maps.Clone(db.ClauseBuilders), DisableAutomaticPing: true})
}
