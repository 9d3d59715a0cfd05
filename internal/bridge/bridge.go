// Package bridge gives the library's own packages what its users do not need, so that it need not
// be exported. The root fills it.
package bridge

import (
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox/internal/store"
)

// Plugin is the inside of an *outbox.Plugin.
type Plugin struct {
	DB                          *gorm.DB // that it is bound to
	Store                       *store.Store
	Functions                   []string // registered in this process
	RetainSuccess, RetainErrors time.Duration
	MaxArgs                     int
}

// Of is the inside of an *outbox.Plugin, or outbox.ErrNotInstalled before db.Use.
var Of func(plugin any) (Plugin, error)

// Created is called after tasks have been created in a transaction. over reports whether that
// transaction is over. Package testutil sets it, so it is nil in an application.
var Created func(plugin any, over func() bool)
