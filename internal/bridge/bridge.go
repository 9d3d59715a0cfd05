// Package bridge gives the library's own packages what its users do not need, so that it need not be exported.
package bridge

import (
	"time"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox/internal/dialect"
)

// DB is the database that an *outbox.Plugin is bound to, or outbox.ErrNotInstalled before db.Use. The root package sets
// it.
var DB func(plugin any) (*gorm.DB, error)

// Dialect is the database's dialect with the plugin's names, or outbox.ErrNotInstalled before db.Use. The root package
// sets it.
var Dialect func(plugin any) (dialect.Dialect, error)

// Limits are what an *outbox.Plugin keeps and serves, for those who show it.
type Limits struct {
	Funcs                       []string // registered in this process
	RetainSuccess, RetainErrors time.Duration
	MaxArgs                     int
}

// LimitsOf tells a plugin's limits. The root package sets it.
var LimitsOf func(plugin any) Limits

// Created is called after tasks have been created in a transaction of which can be told whether it is over. Package testutil
// sets it, so it is nil in an application.
var Created func(plugin any, over func() bool)
