//go:build race

package soak

// buildFlags make the workers under test share the race detector of the test.
var buildFlags = []string{"-race"}
