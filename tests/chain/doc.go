// Package chain is the property test of backup chains: random steps on one VM (guest writes and discards, also
// during a backup, resizes, restarts, backups of every mode, of the VM when it is off, failed and cancelled ones and some
// whose VM ends, deletes, prunes and consolidations) beside a model that keeps each disk's bytes now and at the moment of each
// backup. Whatever the steps were, every backup that exists restores to the bytes of its moment, whole and a disk
// alone, and nothing else is left. It runs the real programs against libvirtd and QEMU, and needs root and what
// `make deps` installs.
//
// `go test` runs a hundred steps, `make soak` thousands. These environment variables change it:
//
//	NASFLEET_CHAIN_STEPS  how many steps; 100 is the default
//	NASFLEET_CHAIN_SEED   the seed of what is chosen at random; each run prints its own
package chain
