#!/usr/bin/env bash
# Check the dependency tree against RustSec's advisories, as far as their database can be had: it is a git
# repository on the internet. Where it cannot be fetched, one that was fetched before is used, and its age
# told; where there is none, that is told and nothing fails.
# Usage: advisories.sh CARGO-DENY   (ISOPOD_ADVISORIES=required: no database is an error, for machines that
# must have it)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
deny=$1
databases=${CARGO_HOME:-$HOME/.cargo}/advisory-dbs

note() { printf '\nNOTE: %s\n\n' "$*" >&2; }

why=$(mktemp)
trap 'rm -f "$why"' EXIT
if ! timeout 120 "$deny" fetch db >"$why" 2>&1; then
  fetched=$({ find "$databases" -name FETCH_HEAD -printf '%TF\n' 2>/dev/null || true; } | sort | tail -n 1)
  if [[ -z $fetched ]]; then
    note "advisories were NOT checked: their database cannot be fetched ($(tail -n 1 "$why"))"
    [[ ${ISOPOD_ADVISORIES:-} != required ]]
    exit
  fi
  note "advisories are those of $fetched: a newer database cannot be fetched"
fi
"$deny" check --disable-fetch advisories
