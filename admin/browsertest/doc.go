// Package browsertest holds no code: its tests drive the administrator's pages with a real browser.
// It is a module of its own, so that nobody else compiles what that needs.
package browsertest
