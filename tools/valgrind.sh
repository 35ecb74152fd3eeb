#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# valgrind.sh FOLDER: every C++ test program below FOLDER under valgrind, two at a time: reads and writes outside of what is
# allocated, values that nobody wrote, and memory that nothing points to at the end. Fails on the first such report of each.
set -euo pipefail
suppressions="$(cd "$(dirname "$0")" && pwd)/valgrind.supp"
export suppressions
cd "$1"
one() {
  local log=$1.valgrind
  # Everything takes thirty times as long: counts that only lengthen a test are lower. Planted faults read what nobody wrote.
  if DISTORCH_SCHEDULES=100 DISTORCH_OPERATIONS=800 DISTORCH_STRINGS=2000 timeout 1800 \
    valgrind --quiet --suppressions="$suppressions" --leak-check=full --show-leak-kinds=definite \
    --errors-for-leak-kinds=definite --error-exitcode=9 --fair-sched=yes "$1" --gtest_brief=1 --gtest_filter="-*PlantedFault*" > "$log" 2>&1; then
    echo "ok    $(basename "$1")"
  else
    echo "FAIL  $(basename "$1")"
    tail -n 40 "$log"
    return 1
  fi
}
export -f one
find tests -name '*_test' -type f -perm -u+x | sort | xargs -P 2 -I{} bash -c 'one {}'
