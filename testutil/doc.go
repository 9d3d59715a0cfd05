// Package testutil helps to test an application that uses package outbox. It checks which tasks
// were created, runs the tasks that are due, and has a clock that stands still. It imports no
// database driver; package testutil/testdb has databases.
package testutil
