#!/usr/bin/env bash
# Push the test images, building them first if need be, to a registry as isopod/NAME:latest.
# Usage: push.sh HOST:PORT
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=guest-image/cache.sh
source "$here/../../guest-image/cache.sh"

(($# == 1)) || die "usage: push.sh HOST:PORT"
registry=$1
images=$("$here/build.sh")

for layout in "$images"/*/; do
  name=$(basename "$layout")
  # --all: an index with all its images, not the one for this machine
  step "push $registry/isopod/$name:latest" \
    skopeo --insecure-policy copy --quiet --all --preserve-digests --dest-tls-verify=false "oci:$layout:latest" "docker://$registry/isopod/$name:latest"
done
