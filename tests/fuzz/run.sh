#!/usr/bin/env bash
# Run every fuzz target of vmm and runtime for some seconds: under libFuzzer where a nightly compiler and
# cargo-fuzz are installed, elsewhere by the harness in the crates' own unit tests, on the stable compiler.
# Usage: run.sh SECONDS
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
seconds=$1

if cargo +nightly fuzz --version >/dev/null 2>&1; then
  for crate in vmm runtime; do
    for target in "$crate"/fuzz/fuzz_targets/*.rs; do
      name=$(basename "$target" .rs)
      printf '\n=== %s/%s: %s s of libFuzzer\n' "$crate" "$name" "$seconds" >&2
      (cd "$crate" && cargo +nightly fuzz run "$name" -- -max_total_time="$seconds" -timeout=60)
    done
  done
else
  printf 'no nightly compiler with cargo-fuzz: %s s of each target without coverage, on the stable compiler\n' "$seconds" >&2
  FUZZ_SECONDS=$seconds cargo test --release --workspace --lib -- fuzz_targets::
fi
