// Package scenarios tests what holds when things go wrong: processes that die, freeze or disagree
// about the time, servers and connections that fail, statements that are refused, handlers that
// misbehave, rows that somebody has changed. docs/faults.md lists the faults and the tests.
package scenarios
