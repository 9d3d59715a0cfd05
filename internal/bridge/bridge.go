// Package bridge gives the library's own packages what its users do not need, so that it need not be exported.
package bridge

import "gorm.io/gorm"

// DB is the database that an *outbox.Plugin is bound to, or outbox.ErrNotInstalled before db.Use. The root package sets
// it.
var DB func(plugin any) (*gorm.DB, error)
