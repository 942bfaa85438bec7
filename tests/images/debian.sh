#!/usr/bin/env bash
# Make the image `debian` by mmdebstrap: a Debian system with the programs of cases/workloads.rs, and the benchmark's largest image.
# Prints the directory that holds its OCI layout and the file `packages`, which names the versions that went in. Needs root and,
# the first time, a Debian mirror.
#
# Debian's archive has no version for ever, so that none is pinned: the image has those of the day on which it was built, and it is
# built anew where this recipe changes or its directory in the cache is deleted. No case may depend on a version.
# Usage: debian.sh
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=guest-image/cache.sh
source "$here/../../guest-image/cache.sh"
# shellcheck source=guest-image/debian.sh
source "$here/../../guest-image/debian.sh"
# shellcheck source=tests/images/oci-layout.sh
source "$here/oci-layout.sh"

packages=(postgresql redis-server nginx-light gcc libc6-dev make git strace fio iperf3 stress-ng python3-minimal locales procps)

# What no case reads, as patterns of dpkg: two thirds of what the packages hold. Documentation and translations; engines that
# PostgreSQL, Mesa and GCC load only when asked (a just-in-time compiler, 3D drivers, link-time optimisation, sanitizers); rare
# encodings; git's servers and clients of networks.
unneeded() {
  local lib=/usr/lib/x86_64-linux-gnu
  printf '%s\n' '/usr/share/doc/*' '/usr/share/man/*' '/usr/share/info/*' '/usr/share/locale/*' '/usr/share/X11/*' \
    "$lib/libLLVM*" "$lib/libgallium*" "$lib/libz3*" "$lib/dri/*" '/usr/lib/postgresql/*/lib/bitcode/*' '/usr/lib/postgresql/*/lib/llvmjit*' \
    '/usr/libexec/gcc/*/lto1' '/usr/bin/*lto-dump*' "$lib/lib?san.so*" "$lib/libhwasan.so*" "$lib/libubsan.so*" \
    '/usr/lib/gcc/*/lib?san*.a' '/usr/lib/gcc/*/libhwasan*.a' '/usr/lib/gcc/*/libubsan*.a' "$lib/gprofng/*" "$lib/libgprofng*" \
    "$lib/perl/*/CORE/*" "$lib/perl/*/auto/Encode/[CJKT]?/*" "$lib/gconv/[B-HJ-T]*.so" "$lib/gconv/I[BN]*.so" \
    '/usr/share/i18n/locales/[a-ce-hj-su-z]*' '/usr/share/i18n/charmaps/[A-TV-Z]*' \
    '/usr/lib/git-core/git-[dhis][aehm]*' '/usr/lib/git-core/scalar' '/usr/bin/scalar' '/usr/lib/linux/uapi/*'
}

debian_tree() {
  local root=$1 signed='[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]' pattern options=() no_cluster
  # PostgreSQL's package would make a cluster; the case makes its own
  # shellcheck disable=SC2016  # expanded by mmdebstrap's shell
  no_cluster='mkdir "$1/etc/postgresql-common"; echo create_main_cluster = false >"$1/etc/postgresql-common/createcluster.conf"'
  while read -r pattern; do
    options+=(--dpkgopt="path-exclude=$pattern")
  done < <(unneeded)
  mmdebstrap --mode=root --variant=minbase --format=directory --include="$(IFS=, && echo "${packages[*]}")" \
    --aptopt='Apt::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' "${options[@]}" \
    --essential-hook="$no_cluster" "$DEBIAN_RELEASE" "$root" \
    "deb $signed $DEBIAN_MIRROR/debian $DEBIAN_RELEASE main" "deb $signed $DEBIAN_MIRROR/debian-security $DEBIAN_RELEASE-security main"
  # the container's own; /run/lock stays
  rm -rf "${root:?}"/dev/* "$root"/etc/{hostname,resolv.conf} "$root"/var/cache/*/* "$root"/var/log/*.log
  find "$root/run" ! -type d -delete
}

build() {
  local out=$1 layer
  ((EUID == 0)) || die "the layers hold files of several owners: run this as root"
  umask 022
  step "install ${#packages[@]} packages of Debian $DEBIAN_RELEASE and what they need" debian_tree "$PWD/root"
  dpkg-query --admindir=root/var/lib/dpkg -W -f '${Package} ${Version}\n' >"$out/packages"
  layout_begin "$out/debian"
  # quick to unpack: an emulated node does it
  layer=$(add_layer "$out/debian" root zstd)
  layout_end "$out/debian" "$(add_manifest "$out/debian" amd64 '{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],"Cmd":["/bin/bash"]}' "$layer")"
  say "  image debian: $(du -sm "$PWD/root" | cut -f1) MiB, $(jq -r .descriptor.size <<<"$layer") bytes packed"
}

recipe=$(recipe_of build debian_tree unneeded layout_begin add_blob layer_tar add_layer add_manifest layout_end)
cached debian-image "$(key_of "$DEBIAN_RELEASE" "${packages[*]}" "$recipe")" build
