#!/usr/bin/env bash
# Measures nasfleet against other ways to back a running VM up, and what the guest feels meanwhile, and
# keeps the results in docs/performance.md and docs/performance-guest.md (or in the files that
# NASFLEET_BENCH_REPORT and NASFLEET_BENCH_GUEST_REPORT name). NASFLEET_BENCH_ROUNDS is 5.
set -euo pipefail
cd "$(dirname "$0")/.."
export NASFLEET_BENCH_REPORT=${NASFLEET_BENCH_REPORT:-$PWD/docs/performance.md}
export NASFLEET_BENCH_GUEST_REPORT=${NASFLEET_BENCH_GUEST_REPORT:-$PWD/docs/performance-guest.md}
for bench in Harmless Backup; do
  go test -tags libvirt_dlopen -run '^$' -bench "^Benchmark$bench\$" -benchtime 1x -timeout 6h ./tests/bench
done
echo "written: ${NASFLEET_BENCH_REPORT#"$PWD/"} ${NASFLEET_BENCH_GUEST_REPORT#"$PWD/"}"
