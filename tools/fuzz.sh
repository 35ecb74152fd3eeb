#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# fuzz.sh FOLDER SECONDS: runs every libFuzzer binary of FOLDER/fuzz for SECONDS, from the seeds in tests/corpus and what
# earlier runs kept in FOLDER/corpus; fails on the first finding, which is left in FOLDER/findings.
set -euo pipefail
seeds="$(dirname "$0")/../tests/corpus"
findings="$1/findings"
mkdir -p "$findings"
found=0
for fuzzer in "$1"/fuzz/*_fuzzer; do
  found=1
  name=$(basename "$fuzzer")
  corpus="$1/corpus/$name"
  mkdir -p "$corpus"
  echo "== $name for $2 s"
  "$fuzzer" -max_total_time="$2" -print_final_stats=1 -artifact_prefix="$findings/$name-" "$corpus" "$seeds/$name" 2>&1 | tail -n 12
done
[ $found -eq 1 ] || { echo "no fuzzer was built in $1/fuzz" >&2; exit 1; }
