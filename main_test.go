package outbox_test

import (
	"os"
	"testing"
)

// TestMain lets the test binary be a child process: another dispatcher on the same database.
func TestMain(m *testing.M) {
	if dsn := os.Getenv(dispatcherEnv); dsn != "" {
		os.Exit(dispatcherMain(dsn))
	}
	if dsn := os.Getenv(processEnv); dsn != "" {
		os.Exit(processMain(dsn))
	}
	os.Exit(m.Run())
}
