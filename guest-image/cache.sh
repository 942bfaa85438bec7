# shellcheck shell=bash
# The build cache, sourced by every build script here and in tests/.
#
# An artefact lives at $ISOPOD_CACHE/KIND/KEY/, where KEY is a hash of all that went into it. It appears there whole or not
# at all, is never changed, and may be deleted at any time. Two builds of one key wait for each other.
# stdout is for paths only; progress goes to stderr.

set -euo pipefail
shopt -s inherit_errexit

ISOPOD_CACHE=${ISOPOD_CACHE:-$HOME/.cache/isopod}
# how many compilers run at once
# shellcheck disable=SC2034  # read by the scripts that source this one
JOBS=${ISOPOD_JOBS:-$(nproc)}

say() { printf '%s\n' "$*" >&2; }

die() {
  say "error: $*"
  exit 1
}

# key_of ARG...: a hash of the arguments; one that names a file stands for its content, wherever the file lies
key_of() {
  local arg
  for arg in "$@"; do
    if [[ -f $arg ]]; then sha256sum <"$arg"; else printf '%s\n' "$arg"; fi
  done | sha256sum | cut -c1-32
}

# recipe_of FUNCTION...: their text without comments, so that a better comment does not rebuild a kernel
recipe_of() { declare -f "$@"; }

# cached KIND KEY FUNCTION [ARG...]: print the artefact's directory; if it is not there, call `FUNCTION OUT ARG...` in an
# empty working directory to fill OUT
cached() {
  local kind=$1 key=$2
  local final=$ISOPOD_CACHE/$kind/$key
  if [[ ! -d $final ]]; then
    mkdir -p "$ISOPOD_CACHE/$kind"
    local lock
    exec {lock}>"$ISOPOD_CACHE/$kind/.$key.lock"
    flock -n "$lock" || { say "$kind: another build of it runs, waiting"; flock "$lock"; }
    # the other build may have made it
    [[ -d $final ]] || build_into "$final" "$kind" "${@:3}"
    exec {lock}>&-
  fi
  printf '%s\n' "$final"
}

# build_into FINAL KIND FUNCTION [ARG...]
build_into() (
  final=$1 kind=$2 make=$3
  # what builds that were killed left behind
  find "$ISOPOD_CACHE/$kind" -maxdepth 1 -name '.build-*' -mtime +1 -exec rm -rf {} +
  work=$(mktemp -d "$ISOPOD_CACHE/$kind/.build-XXXXXX")
  trap 'rm -rf "$work"' EXIT
  mkdir "$work/out" "$work/tree"
  cd "$work/tree"
  say "$kind: building into $final"
  "$make" "$work/out" "${@:4}" >&2
  say "$kind: built in ${SECONDS} s"
  mv -T "$work/out" "$final"
)

# step WHAT COMMAND...: run a long command with its output in a log; one line before, one after, the log's end if it fails
step() {
  local what=$1 begin=$SECONDS status log
  shift
  log=$(mktemp)
  say "  $what ..."
  set +e
  (set -e; "$@") >"$log" 2>&1
  status=$?
  set -e
  if ((status != 0)); then
    tail -n 40 "$log" >&2
    rm -f "$log"
    die "$what failed with status $status after $((SECONDS - begin)) s"
  fi
  rm -f "$log"
  say "  $what: $((SECONDS - begin)) s"
}
