#!/usr/bin/env bash
# Build crictl, or the CRI conformance suite critest with its runner ginkgo (a minute more), and print the directory of the programs.
# Usage: cri-tools.sh [critest]
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=guest-image/cache.sh
source "$here/../../guest-image/cache.sh"
# shellcheck source=tests/tools/go-build.sh
source "$here/go-build.sh"

module=$here/cri-tools

build_crictl() {
  local version
  version=$(go_version "$module" sigs.k8s.io/cri-tools)
  go_build "$module" "$1" -ldflags "-s -w -X sigs.k8s.io/cri-tools/pkg/version.Version=$version" sigs.k8s.io/cri-tools/cmd/crictl
}

build_critest() {
  local version
  version=$(go_version "$module" sigs.k8s.io/cri-tools)
  go_build "$module" "$1" -ldflags '-s -w' github.com/onsi/ginkgo/v2/ginkgo
  # critest's package is a test and nothing else
  step "compile critest" nice go -C "$module" test -c -p "$JOBS" -o "$1/critest" \
    -ldflags "-s -w -X sigs.k8s.io/cri-tools/pkg/version.Version=$version" sigs.k8s.io/cri-tools/cmd/critest
}

case ${1:-crictl} in
crictl) cached crictl "$(go_key "$module" build_crictl)" build_crictl ;;
critest) cached critest "$(go_key "$module" build_critest)" build_critest ;;
*) die "unknown program $1: only critest may be named" ;;
esac
