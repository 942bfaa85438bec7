#!/usr/bin/env bash
# Build the CNI plugins that the tests' networks use, and print the directory that holds them (a value for CNI_PATH).
# Usage: cni-plugins.sh
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=guest-image/cache.sh
source "$here/../../guest-image/cache.sh"
# shellcheck source=tests/tools/go-build.sh
source "$here/go-build.sh"

module=$here/cni-plugins
plugins=github.com/containernetworking/plugins

build() {
  local version
  version=$(go_version "$module" "$plugins")
  # the packages are exactly those that tools.go imports
  mapfile -t packages < <(sed -nE 's|^[[:space:]]*_ "(.*)"$|\1|p' "$module/tools.go")
  go_build "$module" "$1" -ldflags "-s -w -X $plugins/pkg/utils/buildversion.BuildVersion=$version" "${packages[@]}"
}

cached cni-plugins "$(go_key "$module" build)" build
