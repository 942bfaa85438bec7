#!/usr/bin/env bash
# Build the benchmark's peer: containerd with its shim and ctr, and a static runc. Prints the two directories of programs.
# Usage: containerd.sh
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=guest-image/cache.sh
source "$here/../../guest-image/cache.sh"
# shellcheck source=tests/tools/go-build.sh
source "$here/go-build.sh"

containerd=github.com/containerd/containerd/v2

build_containerd() {
  local version
  version=$(go_version "$here/containerd" "$containerd")
  go_build "$here/containerd" "$1" -ldflags "-s -w -X $containerd/version.Version=$version" \
    "$containerd/cmd/containerd" "$containerd/cmd/containerd-shim-runc-v2" "$containerd/cmd/ctr"
}

build_runc() {
  # its start-up is C, and seccomp needs libseccomp
  CGO_ENABLED=1 go_build "$here/runc" "$1" -tags 'seccomp urfave_cli_no_docs netgo osusergo' \
    -ldflags '-s -w -linkmode external -extldflags -static' github.com/opencontainers/runc
}

cached containerd "$(go_key "$here/containerd" build_containerd)" build_containerd
cached runc "$(go_key "$here/runc" build_runc)" build_runc
