#!/usr/bin/env bash
# Shows nasfleet's main job on this machine: an image with a real file system is backed up
# through NATS, compressed, encrypted and verified, listed, restored and compared.
# Everything lives in one scratch folder, which is removed at the end whatever happens.
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d /tmp/nasfleet-demo.XXXXXX)
worker=
cleanup() {
  status=$?
  if [ -n "$worker" ] && kill -TERM "$worker" 2>/dev/null; then wait "$worker" || true; fi
  if [ $status -ne 0 ] && [ -f "$work/worker.log" ]; then echo "--- the worker's log" >&2; tail -40 "$work/worker.log" >&2; fi
  rm -rf "$work"
  exit $status
}
trap cleanup EXIT
trap 'exit 130' INT TERM

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
show() { printf '$ %s\n' "$*"; "$@"; }

mkdir "$work/nas" "$work/restored"

say "1. A hostworker with a NATS server of its own"
bin/hostworker --log-level info run --zone demo --host "demo-host" \
  --embedded-nats "$work/nats" --listen 127.0.0.1:0 --libvirt none \
  --run-dir "$work/run" --state-dir "$work/state" --scratch "$work/scratch" 2>"$work/worker.log" &
worker=$!
for _ in $(seq 100); do
  # The server has taken a free port and said which.
  NASFLEET_NATS=$(grep -o 'nats://127[0-9.:]*' "$work/worker.log" | head -n 1 || true)
  export NASFLEET_NATS
  [ -n "$NASFLEET_NATS" ] && bin/publisher hosts 2>/dev/null | grep -q demo-host && break
  kill -0 "$worker" || exit 1
  sleep 0.1
done
show bin/publisher hosts

say "2. A disk image with a real ext4 file system in it"
truncate -s 2G "$work/disk.img"
mkfs.ext4 -q -F -d "$(go env GOROOT)/src" "$work/disk.img"
printf 'a 2 GiB disk, %s of it used\n' "$(du -h "$work/disk.img" | cut -f1)"

say "3. Backed up in one pass: compressed, encrypted, verified"
head -c 18 /dev/urandom | base64 >"$work/passphrase"
started=$(date +%s%N)
show bin/publisher take --zone demo --host demo-host --image "$work/disk.img" --repo "$work/nas" \
  --compress --encrypt --passphrase-file "$work/passphrase" --verify --wait --json >"$work/event.json" || {
  cat "$work/event.json" >&2
  exit 1
}
took=$((($(date +%s%N) - started) / 1000000))
id=$(sed -n 's/.*"backup_id": *"\([^"]*\)".*/\1/p' "$work/event.json" | head -n 1)

say "4. What exists"
show bin/publisher ls
show bin/publisher show "$id"

say "5. Restored, and compared with the original"
show bin/publisher restore --backup "$id" --to "$work/restored" --passphrase-file "$work/passphrase" --wait
show qemu-img compare -f raw -F qcow2 "$work/disk.img" "$work/restored/disk0.qcow2"

data=$(sed -n 's/.*"data_bytes": *\([0-9]*\).*/\1/p' "$work/event.json" | head -n 1)
stored=$(sed -n 's/.*"stored_bytes": *\([0-9]*\).*/\1/p' "$work/event.json" | head -n 1)
say "Summary"
awk -v d="$data" -v s="$stored" -v t="$took" 'BEGIN {
  printf "  data %.0f MiB, stored %.0f MiB (%.0f %%), backed up and verified in %.1f s (%.0f MiB/s)\n",
    d/2^20, s/2^20, 100*s/d, t/1000, d/2^20/(t/1000) }'

say "Nothing is left"
kill -TERM "$worker"
wait "$worker"
worker=
if grep -F "$work" /proc/mounts; then echo "a mount is left" >&2; exit 1; fi
if pgrep -f "$work" >/dev/null; then echo "a process is left" >&2; exit 1; fi
echo "no process, no mount; the scratch folder goes now"
