//go:build !race

package lab

// raceEnabled says whether the tests run under the race detector.
const raceEnabled = false
