# shellcheck shell=bash
# Packages and sources of a newer Debian release, fetched without touching the machine's own apt set-up.
# Sourced after cache.sh. apt checks the archive's signature, and each file is pinned by its sha256 as well.

DEBIAN_MIRROR=${DEBIAN_MIRROR:-http://deb.debian.org}
DEBIAN_RELEASE=trixie

# private_apt DIR COMMAND...: apt-get or apt-cache with all its state in DIR
private_apt() {
  local dir=$1 command=$2
  shift 2
  "$command" -q -o Dir::Etc::sourcelist="$dir/sources.list" -o Dir::Etc::sourceparts=/dev/null -o Dir::State::lists="$dir/lists" \
    -o Dir::Cache="$dir" -o APT::Sandbox::User=root -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false "$@"
}

# debian_lists: package lists of the release in a private directory, at most an hour old; prints the directory
debian_lists() {
  local dir=$ISOPOD_CACHE/apt/$DEBIAN_RELEASE lock
  mkdir -p "$dir/lists/partial" "$dir/archives/partial"
  exec {lock}>"$dir/.lock"
  flock "$lock"
  if [[ -z $(find "$dir/updated" -mmin -60 2>/dev/null) ]]; then
    local signed='[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]'
    cat >"$dir/sources.list" <<EOF
deb $signed $DEBIAN_MIRROR/debian $DEBIAN_RELEASE main
deb $signed $DEBIAN_MIRROR/debian-security $DEBIAN_RELEASE-security main
deb-src $signed $DEBIAN_MIRROR/debian $DEBIAN_RELEASE main
EOF
    step "package lists of Debian $DEBIAN_RELEASE" private_apt "$dir" apt-get update
    touch "$dir/updated"
  fi
  exec {lock}>&-
  printf '%s\n' "$dir"
}

# debian_package NAME VERSION SHA256: print the path of the .deb
debian_package() {
  local dir
  dir=$(cached source "$3" fetch_package "$@")
  printf '%s\n' "$dir"/*.deb
}

fetch_package() {
  local out=$1 name=$2 version=$3 sha256=$4 lists
  lists=$(debian_lists)
  require_version "$lists" "$name" "$version"
  (cd "$out" && step "$name $version from Debian" private_apt "$lists" apt-get download "$name=$version")
  check_sha256 "$sha256" "$out"/*.deb
}

# debian_source NAME VERSION SHA256-OF-DSC: print the directory that holds the .dsc and its tarballs
debian_source() { cached source "$3" fetch_source "$@"; }

fetch_source() {
  local out=$1 name=$2 version=$3 sha256=$4 lists
  lists=$(debian_lists)
  require_version "$lists" "$name" "$version"
  (cd "$out" && step "$name $version from Debian" private_apt "$lists" apt-get source --download-only "$name=$version")
  check_sha256 "$sha256" "$out"/*.dsc
}

# unpack_source DIR: unpack what debian_source printed into the current directory and apply Debian's patches
unpack_source() {
  local patch
  tar -xf "$1"/*.orig.tar.* --strip-components=1
  tar -xf "$1"/*.debian.tar.*
  [[ -f debian/patches/series ]] || return 0
  while read -r patch; do
    echo "applying $patch"
    patch -s -p1 <"debian/patches/$patch"
  done < <(grep -vE '^(#|$)' debian/patches/series)
}

# require_version LISTS NAME VERSION
require_version() {
  local known
  known=$(private_apt "$1" apt-cache madison "$2")
  [[ $known == *" $3 "* ]] || die "Debian $DEBIAN_RELEASE no longer has $2 $3:
put one of these, with its sha256, into the versions.env that names it:
$known"
}

# check_sha256 SUM FILE
check_sha256() {
  local found
  found=$(sha256sum "$2" | cut -d' ' -f1)
  [[ $found == "$1" ]] || die "$(basename "$2") has sha256 $found, but $1 is pinned: refused"
}
