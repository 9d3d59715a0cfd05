//go:build !race

package dispatch

const racing = false
