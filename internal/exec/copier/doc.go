// Package copier moves the content of a disk from one NBD server to another in one pass: it
// skips holes, keeps to a bandwidth, digests what it copies and counts progress. It also
// compares a disk with its digests.
package copier
