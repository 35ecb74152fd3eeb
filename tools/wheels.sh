#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# wheels.sh [VERSION...]: builds the wheels for Linux into dist/, for those versions of Python or for all that are supported:
# Abseil linked in, no CUDA library asked for, checked by auditwheel, twine and tools/check_wheel.py. A version whose Python is
# not on this machine is said, and left out.
set -euo pipefail
cd "$(dirname "$0")/.."
build=$PWD/build/wheels tag=manylinux_2_34_x86_64
[ $# -gt 0 ] || set -- 3.10 3.11 3.12 3.13

mkdir -p "$build" dist
if [ ! -e "$build/tools/.installed" ] || [ requirements/wheels.txt -nt "$build/tools/.installed" ]; then
  .venv/bin/python -m venv "$build/tools"
  "$build/tools/bin/python" -m pip install --quiet --disable-pip-version-check -r requirements/wheels.txt
  touch "$build/tools/.installed"
fi
export CCACHE PATH="$build/tools/bin:$PATH"
CCACHE=$(command -v ccache || true)
[ -e "$build/absl/lib/cmake/absl/abslConfig.cmake" ] || tools/abseil.sh "$build/abseil" "$build/absl" > "$build/abseil.log" 2>&1 ||
  { tail -n 40 "$build/abseil.log"; exit 1; }
# Any torch will do: what is compiled against is the stable ABI of torch 2.10, which all later ones have.
torch=$(.venv/bin/python -c 'import importlib.util, pathlib; print(pathlib.Path(importlib.util.find_spec("torch").origin).parent)')

built=()
for version in "$@"; do
  python=$(tools/find_python.sh "$version")
  if [ -z "$python" ]; then
    printf 'MISSING: Python %s with its headers: no wheel for it (pyenv install %s)\n' "$version" "$version" >&2
    continue
  fi
  tagged=cp${version/./}
  rm -rf "$build/$tagged.raw"
  env -u PYTHONPATH "$python" -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir "$build/$tagged.raw" \
    --config-settings=build-dir="$build/$tagged" --config-settings=cmake.build-type=Release \
    --config-settings=cmake.define.DISTORCH_ABSL_SOURCE="$build/absl" --config-settings=cmake.define.DISTORCH_TORCH_DIR="$torch" \
    . > "$build/$tagged.log" 2>&1 || { tail -n 60 "$build/$tagged.log"; exit 1; }
  rm -f dist/distorch-*-"$tagged-$tagged"-manylinux*.whl
  auditwheel repair --plat "$tag" --only-plat --exclude 'libtorch*' --exclude 'libc10*' --wheel-dir dist "$build/$tagged.raw"/*.whl >> "$build/$tagged.log" 2>&1 ||
    { tail -n 20 "$build/$tagged.log"; exit 1; }
  built+=(dist/distorch-*-"$tagged-$tagged-$tag".whl)
done
[ ${#built[@]} -gt 0 ] || { echo "no wheel was built" >&2; exit 1; }
twine check --strict "${built[@]}"
python tools/check_wheel.py "${built[@]}"
