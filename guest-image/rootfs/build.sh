#!/usr/bin/env bash
# Make the guest's root, an EROFS image with the agent as PID 1 and little else, and print its path. Same agent, same bytes.
# Usage: rootfs/build.sh AGENT_BINARY
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=guest-image/cache.sh
source "$here/../cache.sh"

(($# == 1)) || die "usage: rootfs/build.sh AGENT_BINARY"
[[ -f $1 ]] || die "no agent at $1: cargo build --profile guest -p isopod-agent makes it"
agent=$(realpath "$1")

# there is no C library in the guest: a dynamic agent would end in a kernel panic
! readelf --program-headers "$agent" | grep INTERP >/dev/null || die "$agent is not a static program"

fill_tree() {
  local root=$1
  # mount points and what is written at run time: the image itself is read-only
  install -d -m 755 "$root"/{dev,proc,sys,run,mnt,etc,sbin,var,var/lib}
  install -d -m 1777 "$root"/{tmp,var/tmp}
  install -d -m 700 "$root/root"
  install -m 755 "$agent" "$root/sbin/init"
  ln -s sbin/init "$root/init"
  ln -s /run "$root/var/run"
  # written by the agent when the pod has its name and its network
  ln -s /run/isopod/sandbox/{resolv.conf,hosts,hostname} "$root/etc/"
  echo 'root:x:0:0:root:/root:/sbin/nologin' >"$root/etc/passwd"
  echo 'root:x:0:' >"$root/etc/group"
}

build() {
  local out=$1
  umask 022
  mkdir root
  fill_tree root
  # -x-1: no extended attributes of the build machine; the UUID is random but fixed, as every guest may have the same
  "$mkfs" --quiet -x-1 -T0 -U 5e9d6a2e-6f0c-4a35-9a54-69736f706f64 --all-root "$out/guest-root.erofs" root
}

mkfs=$("$here/../erofs-utils/build.sh")/mkfs.erofs
dir=$(cached guest-root "$(key_of "$agent" "$mkfs" "$(recipe_of build fill_tree)")" build)
printf '%s\n' "$dir/guest-root.erofs"
