#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# fuzz.sh FOLDER SECONDS: runs every libFuzzer binary of FOLDER/fuzz for SECONDS; fails on the first finding.
set -euo pipefail
found=0
for fuzzer in "$1"/fuzz/*_fuzzer; do
  found=1
  corpus="$1/corpus/$(basename "$fuzzer")"
  mkdir -p "$corpus"
  echo "== $(basename "$fuzzer") for $2 s"
  "$fuzzer" -max_total_time="$2" -print_final_stats=1 -artifact_prefix="$corpus/" "$corpus" 2>&1 | tail -n 12
done
[ $found -eq 1 ] || { echo "no fuzzer was built in $1/fuzz" >&2; exit 1; }
