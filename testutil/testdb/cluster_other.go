//go:build !unix

package testdb

import "os/exec"

// detach refuses: the supervisor is a shell script.
func detach(*exec.Cmd) error { return errNotInstalled }
