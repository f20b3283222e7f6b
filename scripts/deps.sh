#!/usr/bin/env bash
# Installs the packages that a target needs and that are missing: deps.sh build run test bench ceph.
# On a system without apt it prints their names and stops.
set -euo pipefail

packages_for() {
  case $1 in
    build) echo gcc libc6-dev ;;
    run) echo qemu-utils qemu-system-common e2fsprogs mount procps ;;
    test) echo qemu-system-x86 qemu-block-extra libvirt-daemon-system libvirt-daemon-driver-qemu \
      libvirt-clients cryptsetup-bin libnbd-bin sshfs openssh-server openssh-client util-linux systemd ;;
    bench) echo virtnbdbackup ;;
    ceph) echo ceph-mon ceph-osd ceph-common ;;
    *) echo "deps.sh: no such group: $1" >&2; exit 2 ;;
  esac
}

# The tests boot a guest with a kernel and an agent of Debian's. Only their files are fetched, because the
# machine itself should get neither another kernel to boot nor an agent that obeys its hypervisor.
guest_dir=${XDG_CACHE_HOME:-$HOME/.cache}/nasfleet-lab/guest
guest_files() {
  local new kernel
  kernel=$(LC_ALL=C apt-cache depends linux-image-cloud-amd64 | awk '$1 == "Depends:" && $2 ~ /^linux-image-/ { print $2; exit }')
  mkdir -p "$(dirname "$guest_dir")"
  new=$(mktemp -d "$guest_dir.XXXXXX")
  (cd "$new" && apt-get download "$kernel" qemu-guest-agent) &&
    for package in "$new"/*.deb; do
      dpkg-deb -x "$package" "$new" && rm "$package" || break
    done && mv -T "$new" "$guest_dir" && return
  rm -rf "$new"
  return 1
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
log=$(mktemp)
trap 'rm -f "$log"' EXIT
quietly() { "$@" >"$log" 2>&1 </dev/null || { cat "$log" >&2; exit 1; }; }

if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" -ne 0 ]; then
    echo "These packages are missing; install them as root, then run make again:" >&2
    echo "  apt-get install --no-install-recommends ${missing[*]}" >&2
    exit 1
  fi
  echo "installing: ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  quietly apt-get update
  quietly apt-get install -y --no-install-recommends "${missing[@]}"
fi
if [[ " $* " == *" test "* ]] && [ ! -d "$guest_dir" ]; then
  echo "fetching the files of the tests' guest"
  [ "$(id -u)" -ne 0 ] || quietly apt-get update
  quietly guest_files
fi
