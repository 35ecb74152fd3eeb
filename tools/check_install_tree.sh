#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# check_install_tree.sh BUILD [VENV]: installs a build tree into a new folder, builds tests/install_project against it with
# nothing else of this checkout in reach, and runs what it built. With VENV: also the adapter, with the libtorch there.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
build=$1 venv=${2:-}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cmake --install "$build" --prefix "$work/prefix" > "$work/log" || { cat "$work/log"; exit 1; }
cp -r "$root/examples" "$root/tests/install_project" "$work/"
args=(-DCMAKE_PREFIX_PATH="$work/prefix" -DEXAMPLES="$work/examples")
if [ -n "$venv" ]; then
  args+=(-DTORCH_DIR="$("$venv/bin/python" -c 'import importlib.util, pathlib; print(pathlib.Path(importlib.util.find_spec("torch").origin).parent)')")
fi
cmake -S "$work/install_project" -B "$work/out" -G Ninja "${args[@]}" > "$work/log" 2>&1 || { cat "$work/log"; exit 1; }
cmake --build "$work/out"
"$work/out/plan_file" "$root/tests/corpus/examples/layers.safetensors" "cuda:0,10kb;cpu,*" | tee "$work/said" | head -n 12
grep -q "DisTorch2 Model Device Allocations" "$work/said"
if [ -n "$venv" ]; then
  "$work/out/place_module" | tee "$work/said"
  grep -q "equal bit for bit: yes" "$work/said"
fi
echo "installed: $(find "$work/prefix" -name '*.h' | wc -l) headers, $(find "$work/prefix" -name '*.a' | wc -l) libraries"
