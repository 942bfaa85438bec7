# shellcheck shell=bash
# Go programs of other projects, built from a wrapper module each (`go install PROGRAM@VERSION` refuses most of them, as their
# go.mod files have replace or exclude lines). The module's go.mod and go.sum are the pins. Sourced after guest-image/cache.sh.

# programs are static and the same on every machine
export CGO_ENABLED=0 GOFLAGS='-trimpath -mod=readonly -buildvcs=false'

# go_key MODULE FUNCTION...: a hash of the wrapper module, the build functions and the compiler
go_key() {
  local module=$1
  shift
  key_of "$module/go.mod" "$module/go.sum" "$module/tools.go" "$(recipe_of go_build "$@")" "$(go env GOVERSION)"
}

# go_version MODULE DEPENDENCY: the version that the wrapper module pins, such as v1.36.0
go_version() { sed -nE "s|^(require )?[[:space:]]*$2 (v[^ ]+).*|\2|p" "$1/go.mod"; }

# go_build MODULE OUT [FLAG...] PACKAGE...: build the packages into the directory OUT; fetches the modules they need
go_build() {
  local module=$1 out=$2
  shift 2
  step "fetch and compile $(basename "$module")" nice go -C "$module" build -p "$JOBS" -o "$out/" "$@"
}
