//go:build race

package dispatch

const racing = true
