#!/usr/bin/env bash
# Build the guest kernel (once per source, configuration and compiler) and print the path of its `vmlinux`, with `config` beside it.
# Usage: kernel/build.sh
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=guest-image/cache.sh
source "$here/../cache.sh"
# shellcheck source=guest-image/debian.sh
source "$here/../debian.sh"
# shellcheck source=guest-image/versions.env
source "$here/../versions.env"

# the lines that mean something: CONFIG_X=... and "# CONFIG_X is not set"
fragment_options() { grep -E '^(CONFIG_[A-Z0-9_]+=|# CONFIG_[A-Z0-9_]+ is not set$)' "$here/isopod.config"; }

# lost_options CONFIG: fragment lines that are not true of the configuration (an option that is absent is "not set")
lost_options() {
  local line option
  while IFS= read -r line; do
    if [[ $line == \#* ]]; then
      option=${line#\# } option=${option%% *}
      ! grep -q "^$option=" "$1" || printf '%s, but it is set\n' "$line"
    else
      grep -qxF -- "$line" "$1" || printf '%s, but it is not\n' "$line"
    fi
  done < <(fragment_options)
}

configure() {
  make tinyconfig
  scripts/kconfig/merge_config.sh -m .config "$here/isopod.config"
  make olddefconfig
  local lost
  lost=$(lost_options .config)
  [[ -z $lost ]] || die "isopod.config asks for what this kernel does not give (renamed, or a dependency is off):"$'\n'"$lost"
}

unpack() { dpkg-deb --fsys-tarfile "$1" | tar -xO --wildcards './usr/src/linux-source-*.tar.xz' | tar -xJ --strip-components=1; }

patch_all() {
  local file
  for file in "$here"/patches/*.patch; do patch -p1 --no-backup-if-mismatch <"$file"; done
}

build() {
  local out=$1 package
  package=$(debian_package "$KERNEL_PACKAGE" "$KERNEL_VERSION" "$KERNEL_SHA256")
  # the same bytes on every machine
  export KBUILD_BUILD_TIMESTAMP='2026-01-01' KBUILD_BUILD_USER=isopod KBUILD_BUILD_HOST=isopod KBUILD_BUILD_VERSION=1
  step "unpack Linux $KERNEL_VERSION" unpack "$package"
  step "patch" patch_all
  step "configure" configure
  step "compile with $JOBS jobs (about 15 minutes of CPU time)" nice make -s -j"$JOBS" vmlinux
  strip -o "$out/vmlinux" vmlinux
  cp .config "$out/config"
  make -s kernelrelease >"$out/release"
  gcc --version | head -n1 >"$out/compiler"
}

key=$(key_of "$KERNEL_SHA256" "$(fragment_options)" "$here"/patches/*.patch "$(recipe_of build configure unpack patch_all)" "$(gcc --version | head -n1)")
dir=$(cached kernel "$key" build)
printf '%s\n' "$dir/vmlinux"
