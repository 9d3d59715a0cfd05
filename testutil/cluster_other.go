//go:build !unix

package testutil

import "os/exec"

// detach refuses: the supervisor is a shell script.
func detach(*exec.Cmd) error { return errNotInstalled }
