// Package bench measures nasfleet against the tools that people use today, on one machine in one
// run, and writes docs/performance.md; what a guest feels while it is backed up, in
// docs/performance-guest.md; and incremental backups, in docs/performance-incremental.md. `make
// bench` runs it; `go test` alone runs only the tests of its arithmetic, because the measuring is a
// benchmark. It needs root and what `make deps` installs.
//
// It measures and judges nothing: no time makes it fail. These environment variables change it:
//
//	NASFLEET_BENCH_ROUNDS  how many rounds; 5 is the default
//	NASFLEET_BENCH_MIB     how much file-system data the guest's disk holds, in MiB; 2048
//	NASFLEET_BENCH_REPORT  where the report is written; it is printed when there is none
//	NASFLEET_BENCH_GUEST_REPORT        the same for what a guest feels
//	NASFLEET_BENCH_INCREMENTAL_REPORT  the same for incrementals
package bench
