// Package compat tests the library in the company that applications keep: other plugins of GORM,
// its settings, other drivers. It is a module of its own, so that what it needs is nobody else's
// dependency.
package compat
