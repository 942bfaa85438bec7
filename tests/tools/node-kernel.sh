#!/usr/bin/env bash
# Fetch the kernel of nodes in which something is measured, Debian's for clouds, and print the directory that
# it and its modules are unpacked in.
# Usage: node-kernel.sh
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=guest-image/cache.sh
source "$here/../../guest-image/cache.sh"
# shellcheck source=guest-image/debian.sh
source "$here/../../guest-image/debian.sh"
# shellcheck source=tests/tools/versions.env
source "$here/versions.env"

# Modules are kept plain: busybox, which loads them in the node, reads no compressed ones, and an emulated
# CPU unpacks slowly.
unpack() {
  local out=$1 release=${NODE_KERNEL_PACKAGE#linux-image-}
  dpkg-deb -x "$package" "$out"
  ln -s usr/lib "$out/lib"
  find "$out/lib/modules/" -name '*.ko.xz' -print0 | xargs -0 -r -n 50 -P "$JOBS" xz -d
  /sbin/depmod -b "$out" "$release"
}

package=$(debian_package "$NODE_KERNEL_PACKAGE" "$NODE_KERNEL_VERSION" "$NODE_KERNEL_SHA256")
cached node-kernel "$(key_of "$package" "$(recipe_of unpack)")" unpack
