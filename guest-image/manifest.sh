#!/usr/bin/env bash
# Build all that a guest boots and say what it was made of: prints the path of manifest.json, beside which links lead to
# vmlinux, guest-root.erofs and mkfs.erofs (which made it, and makes guest roots for tests).
# Usage: manifest.sh AGENT_BINARY
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=guest-image/cache.sh
source "$here/cache.sh"
# shellcheck source=guest-image/versions.env
source "$here/versions.env"

(($# == 1)) || die "usage: manifest.sh AGENT_BINARY"
# the build below runs elsewhere
agent=$(realpath "$1")

sha256_of() { sha256sum <"$1" | cut -d' ' -f1; }

build() {
  local out=$1
  ln -s "$vmlinux" "$root" "$erofs_utils/mkfs.erofs" "$out/"
  jq -n \
    --arg kernel_package "$KERNEL_PACKAGE" --arg kernel_version "$KERNEL_VERSION" --arg kernel_source "$KERNEL_SHA256" \
    --arg kernel_release "$(cat "$kernel/release")" --arg kernel_compiler "$(cat "$kernel/compiler")" \
    --arg kernel_config "$(sha256_of "$kernel/config")" --arg vmlinux "$(sha256_of "$vmlinux")" \
    --arg erofs_version "$EROFS_UTILS_VERSION" --arg erofs_source "$EROFS_UTILS_SHA256" \
    --arg erofs_compiler "$(cat "$erofs_utils/compiler")" --arg mkfs "$(sha256_of "$erofs_utils/mkfs.erofs")" \
    --arg agent "$agent_sha256" --arg root "$(sha256_of "$root")" '{
      kernel: {package: $kernel_package, version: $kernel_version, source_sha256: $kernel_source, release: $kernel_release,
        config_sha256: $kernel_config, compiler: $kernel_compiler, vmlinux_sha256: $vmlinux},
      erofs_utils: {version: $erofs_version, source_sha256: $erofs_source, compiler: $erofs_compiler, mkfs_sha256: $mkfs},
      guest_root: {agent_sha256: $agent, image_sha256: $root}
    }' >"$out/manifest.json"
}

vmlinux=$("$here/kernel/build.sh")
kernel=$(dirname "$vmlinux")
erofs_utils=$("$here/erofs-utils/build.sh")
root=$("$here/rootfs/build.sh" "$agent")
agent_sha256=$(sha256_of "$agent")
dir=$(cached manifest "$(key_of "$agent" "${vmlinux%/*}" "${root%/*}" "$erofs_utils" "$(recipe_of build)")" build)
printf '%s\n' "$dir/manifest.json"
