//go:build !race

package outbox

const racing = false
