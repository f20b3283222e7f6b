// Package soak runs many jobs of every kind on two hosts while everything around them fails at random: workers
// are killed and stopped, NATS is cut off, storage daemons die, the NAS hangs and fills up, the scratch
// folder runs low. At the end every job has exactly one final event, every backup that was reported restores
// to the right bytes, and nothing has leaked. It needs root and what `make deps` installs.
//
// `go test` runs the short form, `make soak` the long one. These environment variables change it:
//
//	NASFLEET_SOAK_JOBS  how many jobs; 36 is the default
//	NASFLEET_TEST_SEED  the seed of what is chosen at random; each run prints its own
package soak
