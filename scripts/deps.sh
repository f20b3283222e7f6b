#!/usr/bin/env bash
# Installs the packages that a target needs and that are missing: deps.sh build run test bench.
# On a system without apt it prints their names and stops.
set -euo pipefail

packages_for() {
  case $1 in
    build) echo gcc libc6-dev ;;
    run) echo qemu-utils qemu-system-common e2fsprogs mount procps ;;
    test) echo qemu-system-x86 qemu-block-extra libvirt-daemon-system libvirt-daemon-driver-qemu \
      libvirt-clients cryptsetup-bin libnbd-bin sshfs openssh-server openssh-client util-linux ;;
    bench) echo virtnbdbackup ;;
    *) echo "deps.sh: no such group: $1" >&2; exit 2 ;;
  esac
}

wanted=()
for group in "$@"; do
  read -ra names <<<"$(packages_for "$group")"
  wanted+=("${names[@]}")
done

if ! command -v apt-get >/dev/null; then
  have_all=yes
  for tool in gcc qemu-img qemu-storage-daemon mkfs.ext4; do command -v "$tool" >/dev/null || have_all=no; done
  [ "$have_all" = yes ] && [[ " $* " != *" test "* ]] && exit 0
  echo "This system has no apt. Install what corresponds to these Debian packages, then run make again:" >&2
  printf '  %s\n' "${wanted[@]}" >&2
  exit 1
fi

missing=()
for name in "${wanted[@]}"; do
  dpkg-query -W -f='${Status}\n' "$name" 2>/dev/null | grep -q '^install ok installed$' || missing+=("$name")
done
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" -ne 0 ]; then
  echo "These packages are missing; install them as root, then run make again:" >&2
  echo "  apt-get install --no-install-recommends ${missing[*]}" >&2
  exit 1
fi
echo "installing: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
install() { apt-get update && apt-get install -y --no-install-recommends "${missing[@]}"; }
install >"$log" 2>&1 </dev/null || { cat "$log" >&2; exit 1; }
