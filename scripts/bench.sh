#!/usr/bin/env bash
# Measures nasfleet against other ways to back a running VM up, and keeps the result in
# docs/performance.md (or in the file that NASFLEET_BENCH_REPORT names).
set -euo pipefail
cd "$(dirname "$0")/.."
export NASFLEET_BENCH_REPORT=${NASFLEET_BENCH_REPORT:-$PWD/docs/performance.md}
go test -tags libvirt_dlopen -run '^$' -bench '^BenchmarkBackup$' -benchtime 1x -timeout 6h ./tests/bench
echo "written: ${NASFLEET_BENCH_REPORT#"$PWD/"}"
