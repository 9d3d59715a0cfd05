package admin

import (
	"maps"

	"gorm.io/gorm"
	"gorm.io/gorm/callbacks"
)

// plain is a dialect that brings GORM's own callbacks and no others.
type plain struct{ gorm.Dialector }

func (plain) Initialize(db *gorm.DB) error {
	callbacks.RegisterDefaultCallbacks(db, &callbacks.Config{})
	return nil
}

// plainReads is a handle on the same connections whose queries run no callback of the application:
// one that adds its tenant to every query, or sends it to a replica, would have the pages show less
// than there is, or what has been.
func plainReads(db *gorm.DB) (*gorm.DB, error) {
	return gorm.Open(plain{db.Dialector}, &gorm.Config{ConnPool: db.ConnPool, Logger: db.Logger, NamingStrategy: db.NamingStrategy,
		NowFunc: db.NowFunc, ClauseBuilders: maps.Clone(db.ClauseBuilders), DisableAutomaticPing: true})
}
