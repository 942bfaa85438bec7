#!/usr/bin/env bash
# Build static mkfs.erofs, fsck.erofs and dump.erofs from Debian 13's source (once) and print the directory that holds them.
# Usage: erofs-utils/build.sh
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=guest-image/cache.sh
source "$here/../cache.sh"
# shellcheck source=guest-image/debian.sh
source "$here/../debian.sh"
# shellcheck source=guest-image/versions.env
source "$here/../versions.env"

configure() {
  ./autogen.sh
  # zlib and zstd are there to read compressed layers; images themselves are not compressed
  ./configure --disable-fuse --disable-lzma --without-selinux --with-libzstd --with-zlib --with-uuid
}

build() {
  local out=$1 source program
  source=$(debian_source erofs-utils "$EROFS_UTILS_VERSION" "$EROFS_UTILS_SHA256")
  step "unpack erofs-utils $EROFS_UTILS_VERSION" unpack_source "$source"
  step "configure" configure
  # libtool takes -all-static at link time only: configure's own test programs would fail with it
  step "compile" nice make -j"$JOBS" LDFLAGS=-all-static
  for program in mkfs fsck dump; do
    strip -o "$out/$program.erofs" "$program/$program.erofs"
  done
  gcc --version | head -n1 >"$out/compiler"
}

key=$(key_of "$EROFS_UTILS_SHA256" "$(recipe_of build configure)" "$(gcc --version | head -n1)")
cached erofs-utils "$key" build
