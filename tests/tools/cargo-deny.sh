#!/usr/bin/env bash
# Build cargo-deny, which checks licences and sources of the dependency tree, and print the program's path (some minutes).
# Usage: cargo-deny.sh
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=guest-image/cache.sh
source "$here/../../guest-image/cache.sh"
# shellcheck source=tests/tools/versions.env
source "$here/versions.env"

build() {
  # built in the cache's own working directory, out of reach of this workspace's cargo configuration
  step "fetch and compile cargo-deny $CARGO_DENY_VERSION" env CARGO_TARGET_DIR="$PWD/target" \
    CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_OPT_LEVEL=1 \
    nice cargo install --quiet --locked --jobs "$JOBS" --root "$1" "cargo-deny@$CARGO_DENY_VERSION"
}

dir=$(cached cargo-deny "$(key_of "$CARGO_DENY_VERSION" "$(recipe_of build)" "$(rustc --version)")" build)
printf '%s\n' "$dir/bin/cargo-deny"
