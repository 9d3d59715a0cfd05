//go:build !(linux || darwin || freebsd || netbsd || openbsd || dragonfly || windows)

package dispatch

import (
	"errors"
	"io"
)

func lockFile(string) (io.Closer, error) {
	return nil, errors.New("this system has no lock of a file that ends with its process")
}
