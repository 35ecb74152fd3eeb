#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# fuzz.sh FOLDER SECONDS: runs every libFuzzer binary of FOLDER/fuzz for SECONDS, two at a time, from the seeds in
# tests/corpus and what earlier runs kept in FOLDER/corpus; fails on a finding, which is left in FOLDER/findings.
set -euo pipefail
seeds="$(cd "$(dirname "$0")/../tests/corpus" && pwd)"
cd "$1"
mkdir -p findings logs
one() {
  local name=$1
  mkdir -p "corpus/$name"
  "fuzz/$name" -max_total_time="$2" -print_final_stats=1 -artifact_prefix="findings/$name-" "corpus/$name" "$seeds/$name" \
    > "logs/$name" 2>&1 && end=0 || end=$?
  { echo "== $name for $2 s"; tail -n 12 "logs/$name"; }
  return "$end"
}
names=()
for fuzzer in fuzz/*_fuzzer; do [ -x "$fuzzer" ] && names+=("$(basename "$fuzzer")"); done
[ ${#names[@]} -gt 0 ] || { echo "no fuzzer was built in $1/fuzz" >&2; exit 1; }
export -f one
export seeds
printf '%s\n' "${names[@]}" | xargs -P 2 -I{} bash -c "one {} $2"
