#!/usr/bin/env bash
# Build all outside tools (or those of the named groups) and print a directory whose bin/ holds links to their programs.
# Usage: all.sh [cri-tools|cni-plugins|busybox|containerd|critest]...
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=guest-image/cache.sh
source "$here/../../guest-image/cache.sh"

groups=("$@")
# critest is a minute of compiling that only a conformance run needs
((${#groups[@]} > 0)) || groups=(cri-tools cni-plugins busybox containerd)

build_group() {
  case $1 in
  critest) "$here/cri-tools.sh" critest ;;
  cri-tools | cni-plugins | busybox | containerd) "$here/$1.sh" ;;
  *) die "no group of tools is named $1" ;;
  esac
}

# link OUT DIRECTORY...
link() {
  local out=$1 dir
  shift
  mkdir "$out/bin"
  for dir in "$@"; do
    ln -s "$dir"/* "$out/bin/"
  done
}

found=$(for group in "${groups[@]}"; do build_group "$group"; done)
mapfile -t directories <<<"$found"
cached tools "$(key_of "$(recipe_of link)" "${directories[@]}")" link "${directories[@]}"
