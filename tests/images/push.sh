#!/usr/bin/env bash
# Push the test images, building them first if need be, to a registry as isopod/NAME:latest; with --debian that image too.
# Usage: push.sh [--debian] HOST:PORT
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=guest-image/cache.sh
source "$here/../../guest-image/cache.sh"

sets=("$("$here/build.sh")")
if [[ ${1-} == --debian ]]; then
  sets+=("$("$here/debian.sh")")
  shift
fi
(($# == 1)) || die "usage: push.sh [--debian] HOST:PORT"
registry=$1

while read -r layout; do
  name=$(basename "$layout")
  # --all: an index with all its images, not the one for this machine
  step "push $registry/isopod/$name:latest" \
    skopeo --insecure-policy copy --quiet --all --preserve-digests --dest-tls-verify=false "oci:$layout:latest" "docker://$registry/isopod/$name:latest"
done < <(find "${sets[@]}" -mindepth 1 -maxdepth 1 -type d | sort)
