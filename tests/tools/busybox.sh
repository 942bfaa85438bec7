#!/usr/bin/env bash
# Build the static busybox that the test images are made of, and print the directory that holds it.
# Usage: busybox.sh
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=guest-image/cache.sh
source "$here/../../guest-image/cache.sh"
# shellcheck source=guest-image/debian.sh
source "$here/../../guest-image/debian.sh"
# shellcheck source=tests/tools/versions.env
source "$here/versions.env"

# In Debian's own static busybox the shell runs `ls` as a part of itself, even where /bin/ls is masked or absent: a test of
# masked paths would prove nothing. So the shell here always executes files. tc does not compile with today's headers.
readonly OFF='FEATURE_SH_STANDALONE FEATURE_SH_NOFORK FEATURE_PREFER_APPLETS TC'
readonly ON='STATIC'

configure() {
  local option
  make defconfig
  for option in $OFF; do
    sed -i "s/^CONFIG_$option=y/# CONFIG_$option is not set/" .config
  done
  for option in $ON; do
    sed -i "s/^# CONFIG_$option is not set/CONFIG_$option=y/" .config
  done
  # no answer to a question is its default
  yes '' 2>/dev/null | make oldconfig || true
  for option in $OFF; do
    ! grep -q "^CONFIG_$option=y" .config || die "busybox's CONFIG_$option is still on"
  done
  for option in $ON; do
    grep -q "^CONFIG_$option=y" .config || die "busybox's CONFIG_$option is not on"
  done
}

build() {
  local out=$1 source
  source=$(debian_source busybox "$BUSYBOX_VERSION" "$BUSYBOX_SHA256")
  # busybox writes its build time into its banner
  export SOURCE_DATE_EPOCH=0 KCONFIG_NOTIMESTAMP=1
  step "unpack busybox $BUSYBOX_VERSION" unpack_source "$source"
  step "configure" configure
  step "compile busybox" nice make -s -j"$JOBS" busybox
  cp busybox "$out/busybox"
}

cached busybox "$(key_of "$BUSYBOX_SHA256" "$OFF/$ON" "$(recipe_of build configure)" "$(gcc --version | head -n1)")" build
