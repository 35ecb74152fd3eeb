#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Everything that a GPU has to show, in nine minutes, on a machine that has nothing but Python with torch:
#
#   tools/gpu_check.sh [--dry-run] [--out DIR]
#
# Needs what `make gpu-kit` put into .gpu/. Takes PYTHON (python3 by default). Each step has its own time limit and prints a
# line; DIR (build/gpu-check by default) has results.json, log.txt, results.svg and page.md, written anew after each step,
# so that a run that is cut off still tells something. Exit status 0: every step was done and nothing was found.
#
#   --dry-run      every step on simulated devices, under the kit's Python; no figures, only whether it works
#   --import-only  loads the package and says from where
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD kit=$PWD/.gpu out=build/gpu-check dry_run=0 import_only=0
usage() { sed -n '/^# Everything/,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; }
while [ $# -gt 0 ]; do
  case "$1" in
    --dry-run) dry_run=1 ;;
    --import-only) import_only=1 ;;
    --out) out=${2:?--out needs a folder}; shift ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
  esac
  shift
done
mkdir -p "$out"
out=$(realpath "$out")

[ -d "$kit" ] || { echo "there is no .gpu/ here: run \`make gpu-kit\` first, where there is a network" >&2; exit 2; }
if [ $dry_run = 1 ] || [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  [ $dry_run = 0 ] || PYTHON=$root/.venv-$(python3 tools/gpu/manifest.py --runner-of "$kit/manifest.json")/bin/python
fi
PYTHON=$(command -v "$PYTHON") || { echo "$PYTHON is not there" >&2; exit 2; }
PATH=$(dirname "$PYTHON"):$PATH  # its cmake and ninja
"$PYTHON" -c 'import torch' || { echo "$PYTHON has no torch: name one that has it, PYTHON=... tools/gpu_check.sh" >&2; exit 2; }
version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')

# The package: the sources of this checkout, with the compiled parts of the kit beside them.
mkdir -p build
stage=$(mktemp -d "$root/build/gpu-stage.XXXXXX")
trap 'rm -rf "$stage"' EXIT
compiled=$kit/python/$version
assemble() {
  rm -rf "$stage/distorch"
  cp -rs "$root/bindings/distorch" "$stage/distorch"
  ln -s "$compiled/"{*.so,_version.py} "$stage/distorch/"
}
loads() { PYTHONPATH=$stage "$PYTHON" -c 'from distorch import _load; _load.core(); _load.load_operators(); import distorch; distorch.__version__'; }
on_the_spot() {
  echo "building the package on the spot: $1"
  compiled=$stage/build/python/distorch
  local limit=${DISTORCH_SPOT_LIMIT:-170}  # seconds for each of the two
  if ! { timeout "$limit" cmake -S . -B "$stage/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_UNITY_BUILD=ON -DDISTORCH_BUILD_TESTS=OFF -DDISTORCH_BUILD_SIM=OFF \
    -DDISTORCH_ABSL_SOURCE="$kit/absl" -DPython_EXECUTABLE="$PYTHON" > "$out/build.log" 2>&1 &&
    timeout "$limit" cmake --build "$stage/build" >> "$out/build.log" 2>&1; }; then
    tail -n 40 "$out/build.log"
    exit 1
  fi
  rm "$out/build.log"
  assemble
  loads
}
if ! why=$("$PYTHON" tools/gpu/manifest.py --check "$kit/manifest.json"); then on_the_spot "$why"
elif [ ! -d "$compiled" ]; then on_the_spot "the kit has none for Python $version"
else
  assemble
  why=$(loads 2>&1) || on_the_spot "the kit's does not load: $(head -n 1 <<< "$why")"
fi

export PYTHONPATH=$stage:$kit/site
"$PYTHON" -c 'import PIL, requests' 2> /dev/null || PYTHONPATH=$PYTHONPATH:$kit/extra
export HF_HUB_OFFLINE=1
arguments=(--out "$out")
if [ $dry_run = 1 ]; then
  export DISTORCH_CUDA_TESTS_ON=sim PYTHONPATH=$PYTHONPATH:$root/build/gpu-kit/$version/python
  arguments+=(--dry-run)
fi
"$PYTHON" - << 'PYTHON'
import sys

import distorch
import torch

from distorch import _load

print(f"Python {sys.version.split()[0]}, torch {torch.__version__}, distorch built with torch {_load.core().built_with_torch}")
PYTHON
[ $import_only = 0 ] || exit 0
"$PYTHON" tools/gpu/check.py "${arguments[@]}"
