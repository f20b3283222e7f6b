#!/usr/bin/env bash
# Measures nasfleet against other ways to back a running VM up, what the guest feels meanwhile, and
# incremental backups, and keeps the results in docs/performance*.md (or in the files that
# NASFLEET_BENCH_REPORT, NASFLEET_BENCH_GUEST_REPORT and NASFLEET_BENCH_INCREMENTAL_REPORT name).
# NASFLEET_BENCH_ROUNDS is 5; arguments choose among Harmless, Incremental and Backup.
set -euo pipefail
cd "$(dirname "$0")/.."
export NASFLEET_BENCH_REPORT=${NASFLEET_BENCH_REPORT:-$PWD/docs/performance.md}
export NASFLEET_BENCH_GUEST_REPORT=${NASFLEET_BENCH_GUEST_REPORT:-$PWD/docs/performance-guest.md}
export NASFLEET_BENCH_INCREMENTAL_REPORT=${NASFLEET_BENCH_INCREMENTAL_REPORT:-$PWD/docs/performance-incremental.md}
[ $# -gt 0 ] || set -- Harmless Incremental Backup
for bench in "$@"; do
  go test -tags libvirt_dlopen -run '^$' -bench "^Benchmark$bench\$" -benchtime 1x -timeout 6h ./tests/bench
done
echo "written: docs/performance*.md, or the files named in the environment"
