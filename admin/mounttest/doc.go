// Package mounttest holds no code: its tests mount the administrator's pages on the routers that
// people use. It is a module of its own, so that nobody else compiles them.
package mounttest
