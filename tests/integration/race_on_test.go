//go:build race

package integration

// buildFlags make the worker under test share the race detector of the tests. Publisher does not: each
// of its many runs would pay for the start.
var buildFlags = []string{"-race"}
