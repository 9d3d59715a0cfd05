// Package testutil helps to test an application that uses package outbox. It asserts what was
// created, runs what is due, and has a clock that stands still. It imports no database driver;
// package testutil/testdb gives databases.
package testutil
