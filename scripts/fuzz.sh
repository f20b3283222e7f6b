#!/usr/bin/env bash
# Runs every fuzz test of the tree for a while each: fuzz.sh [TIME, 20s by default].
set -euo pipefail
cd "$(dirname "$0")/.."
time=${1:-20s}
grep -rlE '^func Fuzz' --include='*_test.go' . | sort | while read -r file; do
  grep -oE '^func Fuzz[A-Za-z0-9_]*' "$file" | cut -d' ' -f2 | while read -r name; do
    echo "== $name in $(dirname "$file")"
    go test -tags libvirt_dlopen -run '^$' -fuzz "^$name\$" -fuzztime "$time" -fuzzminimizetime 1x "$(dirname "$file")" </dev/null
  done
done
