#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Compiles and links the CUDA sources. Nothing here runs them; without nvcc the script says so and fails.
set -euo pipefail
nvcc=${DISTORCH_NVCC:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
[ -x "$nvcc" ] || { echo "nvcc was not found: install the CUDA Toolkit or set DISTORCH_NVCC" >&2; exit 1; }
DISTORCH_NVCC=$nvcc cmake --preset cuda
cmake --build --preset cuda
