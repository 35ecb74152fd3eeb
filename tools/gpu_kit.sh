#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Fills .gpu/ with what a bare machine with a GPU lacks, so that tools/gpu_check.sh needs nothing else there:
#   python/3.12, python/3.11  the compiled parts of the package, stripped, Abseil linked into them (PYTHONS="3.12" for some)
#   absl                      Abseil's headers and static libraries, for a build there when the prebuilt does not load
#   bin                       the CUDA programs, for sm_80, sm_89, sm_90 and as PTX
#   site, extra               the part of diffusers that bench/gpu/run.py uses; what that needs, where it is missing
#   manifest.json             what it was made from
# Also makes, outside of .gpu/, what the dry run needs: .venv-3.12 with a torch of its own, and the simulated accelerator.
# What is missing on this machine is said, and left out.
set -euo pipefail
cd "$(dirname "$0")/.."
kit=$PWD/.gpu build=$PWD/build/gpu-kit
limit_mib=60

say() { printf '%s\n' "$*"; }
missing() { printf 'MISSING: %s\n' "$*" >&2; }

declare -A pythons
for version in ${PYTHONS:-3.12 3.11}; do
  python=$(tools/find_python.sh "$version")
  if [ -n "$python" ]; then pythons[$version]=$python; else missing "Python $version with its headers: the kit has no package for it"; fi
done
runner=3.12
if [ -z "${pythons[3.12]:-}" ]; then
  runner=$(.venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  pythons[$runner]=$(realpath .venv/bin/python)
  missing "the dry run uses Python $runner in place of 3.12; where 3.12 is needed, the package is built on the spot"
fi

venv=$PWD/.venv-$runner
if [ ! -e "$venv/.installed" ] || [ requirements/gpu-kit.txt -nt "$venv/.installed" ]; then
  say "installing torch and what goes with it from PyPI into ${venv#"$PWD"/}"
  [ -x "$venv/bin/python" ] || "${pythons[$runner]}" -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r requirements/gpu-kit.txt
  touch "$venv/.installed"
fi

rm -rf "$kit"
mkdir -p "$kit/bin" "$build"

versions=$(printf '%s\n' "${!pythons[@]}" | sort -V)
say "building the wheels of Python ${versions//$'\n'/ and }"
# shellcheck disable=SC2086
tools/wheels.sh $versions
cp -r build/wheels/absl "$kit/absl"
for version in $versions; do
  rm -rf "$build/wheel"
  "$venv/bin/python" -m zipfile -e dist/distorch-*-cp"${version/./}"-cp"${version/./}"-manylinux*.whl "$build/wheel"
  mkdir -p "$kit/python/$version"
  cp "$build/wheel/distorch/"{*.so,_version.py} "$kit/python/$version/"
done
say "building the simulated accelerator for torch $("$venv/bin/python" -c 'import torch; print(torch.__version__)')"
tools/build_sim.sh "$venv/bin/python" "$build/$runner"

nvcc=${DISTORCH_NVCC:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
if [ -x "$nvcc" ]; then
  say "building the CUDA programs with $nvcc"
  DISTORCH_NVCC=$nvcc cmake --preset cuda -B "$build/cuda" -DCMAKE_CUDA_ARCHITECTURES='80-real;89-real;90' > "$build/cuda.log"
  cmake --build "$build/cuda" >> "$build/cuda.log" || { tail -n 60 "$build/cuda.log"; exit 1; }
  find "$build/cuda/bench" -maxdepth 1 -type f -perm -u+x -exec cp {} "$kit/bin/" ";"
  strip "$kit/bin/"*
else
  missing "nvcc (CUDA Toolkit, or set DISTORCH_NVCC): the CUDA programs are built where the check runs"
fi

"$venv/bin/python" tools/gpu/carry_diffusers.py "$build/wheels" "$kit/site" "$kit/extra"
"$venv/bin/python" tools/gpu/manifest.py --write "$kit/manifest.json" --runner "$runner"

say ""
for part in "$kit"/*; do printf '%8s  %s\n' "$(du -sh "$part" | cut -f1)" ".gpu/$(basename "$part")"; done
total=$(du -sm "$kit" | cut -f1)
printf '%7sM  .gpu, of at most %sM\n' "$total" "$limit_mib"
[ "$total" -le "$limit_mib" ] || { say "the kit is too large" >&2; exit 1; }
needs() { objdump -T "$1" | grep -oE "$2_[0-9.]+" | sort -uV | tail -n 1; }
for file in "$kit"/python/*/_C*.so; do
  if objdump -p "$file" | grep -q 'NEEDED.*absl'; then say "$file asks for a shared Abseil" >&2; exit 1; fi
  say "$(basename "$file") needs $(needs "$file" GLIBC) and $(needs "$file" GLIBCXX), no Abseil"
done
PYTHON=$venv/bin/python tools/gpu_check.sh --import-only
