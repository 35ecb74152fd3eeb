#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Shows that what needs no torch compiles for Windows, without a warning. Nothing is linked, so Abseil's headers are enough;
# `make windows-wheel` is the whole build.
set -euo pipefail
cd "$(dirname "$0")/.."
tools/system_packages.sh mingw
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
ln -s "$(echo '#include <absl/status/status.h>' | g++ -E -x c++ - | sed -nE 's/^# 1 "(.*)\/status\/status\.h".*/\1/p' | head -n 1)" "$work/absl"
find allocation distorch -name '*.cc' ! -name patch_math.cc -print0 | sort -z |
  xargs -0 -n 6 -P "$(nproc)" x86_64-w64-mingw32-g++-posix -std=c++20 -fsyntax-only -D_WIN32_WINNT=0x0A00 \
    -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Wold-style-cast -Werror -I. -isystem "$work"
echo "$(find allocation distorch -name '*.cc' ! -name patch_math.cc | wc -l) files compile with $(x86_64-w64-mingw32-g++-posix --version | head -n 1)"
