#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# build_sim.sh PYTHON BUILD: builds the simulated accelerator and the double of the CUDA library, for the torch of that Python.
# BUILD/python is what belongs into PYTHONPATH, before a package that is installed there: BUILD has no distorch of its own.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1 build=$2
mkdir -p "$build"
{
  cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DDISTORCH_BUILD_TESTS=ON -DDISTORCH_INSTALL=OFF \
    -DDISTORCH_BUILD_EXAMPLES=OFF -DPython_EXECUTABLE="$python" -Dpybind11_DIR="$(.venv/bin/python -m pybind11 --cmakedir)" &&
    cmake --build "$build" --target distorch_sim distorch_sim_stage distorch_fake_cuda_library
} > "$build/log.txt" 2>&1 || { tail -n 40 "$build/log.txt"; exit 1; }
