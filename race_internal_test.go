//go:build race

package outbox

const racing = true
