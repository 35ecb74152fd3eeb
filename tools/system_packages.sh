#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Checks for what Debian or Ubuntu must provide; installs it where the user is root, else says how to get it.
# system_packages.sh [test|fuzz|coverage|valgrind|tidy|reference|mingw|wine]: what the build needs, and what those targets need beside it.
set -euo pipefail

missing=()
need() {  # need PACKAGE TEST...: PACKAGE is missing when the test fails
  local package=$1
  shift
  "$@" > /dev/null 2>&1 || missing+=("$package")
}
fuzzer_runtime() { echo 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }' | clang++ -fsanitize=fuzzer,address -x c++ - -o /dev/null; }
header() { echo "#include <$1>" | g++ -std=c++20 -E -x c++ - ; }

need build-essential command -v g++
need cmake command -v cmake
need ninja-build command -v ninja
need git command -v git
need python3-venv "${PYTHON:-python3}" -c 'import venv, ensurepip'
need python3-dev "${PYTHON:-python3}" -c 'import pathlib, sysconfig; assert pathlib.Path(sysconfig.get_paths()["include"], "Python.h").exists()'
need libabsl-dev header absl/status/statusor.h
need libgtest-dev header gtest/gtest.h
need libgmock-dev header gmock/gmock.h
need libbenchmark-dev header benchmark/benchmark.h

case "${1:-}" in
  test) need chromium command -v chromium ;;
  fuzz)
    need clang command -v clang++
    need libclang-rt-dev fuzzer_runtime
    ;;
  coverage) need gcovr command -v gcovr ;;
  valgrind) need valgrind command -v valgrind ;;
  tidy)
    need clang command -v clang++
    need clang-tidy command -v clang-tidy
    ;;
  reference) need doxygen command -v doxygen ;;
  mingw) need g++-mingw-w64-x86-64-posix command -v x86_64-w64-mingw32-g++-posix ;;
  wine)
    need g++-mingw-w64-x86-64-posix command -v x86_64-w64-mingw32-g++-posix
    need wine64 test -x /usr/lib/wine/wine64
    need wine command -v wine
    ;;
esac

[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" -eq 0 ] && command -v apt-get > /dev/null; then
  echo "installing from Debian: ${missing[*]}"
  patient=(-o Acquire::Retries=3 -o Acquire::http::Timeout=60 -o DPkg::Lock::Timeout=300)
  apt-get update -qq "${patient[@]}"
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${patient[@]}" --no-install-recommends "${missing[@]}" > /dev/null
else
  echo "These packages of your system are missing: ${missing[*]}" >&2
  echo "Get them with:  sudo apt-get install ${missing[*]}" >&2
  exit 1
fi
