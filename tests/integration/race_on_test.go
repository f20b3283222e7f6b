//go:build race

package integration

// buildFlags make the programs under test share the race detector of the tests.
var buildFlags = []string{"-race"}
