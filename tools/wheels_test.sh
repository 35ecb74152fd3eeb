#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# wheels_test.sh [PYTHON:TORCH...]: the library's tests on the wheels in dist/, each pair in a fresh environment that is removed
# afterwards; without pairs the whole matrix (several GB from PyPI for each torch). "newest" is PyPI's newest torch. Where
# .venv or .venv-PYTHON has that torch already, it is borrowed; "lent" is the torch of such a one, whichever it is.
# The simulated accelerator is built for each torch.
# TESTS: folders of tests/python instead of all of the library's. SIM=0: without simulated devices, which is cheap; the tests
# that need them are then named and left out.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$PWD/build/wheels/test
[ $# -gt 0 ] || set -- 3.10:2.10.0 3.12:2.11.0 3.11:2.13.0 3.13:newest
# The other folders test ComfyUI's pack, the tools and this checkout, not the wheel.
tests=${TESTS:-allocation devices eject isolation memory model_files models place running sim stats telemetry transfer}
say() { printf '%s\n' "$*"; }

# Prints the folder of an environment with that Python and torch ("lent": any), or nothing.
lender() {
  local venv
  for venv in .venv ".venv-$1"; do
    [ -x "$venv/bin/python" ] && "$venv/bin/python" - "$1" "$2" << 'PYTHON' && { realpath "$venv"; return; }
import importlib.metadata, sys

try:
    torch = importlib.metadata.version("torch").partition("+")[0]
except importlib.metadata.PackageNotFoundError:
    sys.exit(1)
sys.exit("%d.%d" % sys.version_info[:2] != sys.argv[1] or sys.argv[2] not in ("lent", torch))
PYTHON
  done
  true
}

environment() {  # environment PYTHON TORCH: makes $env, with the torch of $lent or from PyPI
  "$(tools/find_python.sh "$1")" -m venv "$env"
  pip=("$env/bin/python" -m pip --quiet --disable-pip-version-check)
  if [ -n "$lent" ]; then
    "$lent/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' \
      > "$("$env/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/borrowed.pth"
  else
    "${pip[@]}" install --no-cache-dir "torch==$2" -r requirements/wheels-test.txt
  fi
  "${pip[@]}" install --no-index --no-deps --find-links dist --force-reinstall distorch
}

cell() {
  local python=$1 torch=$2 tagged=cp${1/./} lent sim env passed imports
  [ "$torch" = newest ] && torch=$(.venv/bin/python -m pip index versions torch 2> /dev/null | sed -nE '1s/.*\((.*)\)/\1/p')
  if [ -z "$(tools/find_python.sh "$python")" ] || ! ls dist/distorch-*-"$tagged-$tagged"-manylinux*.whl > /dev/null 2>&1; then
    say "NOT RUN: Python $python, torch $torch: no interpreter or no wheel (make wheels)"
    return
  fi
  lent=$(lender "$python" "$torch")
  if [ "$torch" = lent ]; then
    if [ -z "$lent" ]; then
      say "NOT RUN: Python $python: no environment here that could lend its torch"
      return
    fi
    torch=$("$lent/bin/python" -c 'import importlib.metadata; print(importlib.metadata.version("torch").partition("+")[0])')
  fi
  env=$work/env-$python-$torch
  rm -rf "$env"
  mkdir -p "$work"
  environment "$python" "$torch"
  sim=$work/sim-$python-$torch
  if [ "${SIM:-1}" = 0 ]; then
    export DISTORCH_WITHOUT_SIM=1
  else
    tools/build_sim.sh "$env/bin/python" "$sim"
  fi
  imports=$(env -u PYTHONPATH "$env/bin/python" - << 'PYTHON'
import statistics, subprocess, sys

code = """
import time, torch
start = time.perf_counter()
import distorch
from distorch import _load
_load.core(), _load.load_operators()
print((time.perf_counter() - start) * 1e3)
"""
runs = [float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout) for _ in range(7)]
print(f"{min(runs):.0f} ms, median {statistics.median(runs):.0f} ms")
PYTHON
  )
  # shellcheck disable=SC2086
  passed=$(cd tests/python && PYTHONPATH=$sim/python "$env/bin/python" -m pytest -q -p no:randomly $tests ${PYTEST_ARGS:-} 2>&1 | tee "$work/$python-$torch.log" | tail -n 1) ||
    { grep -E '^(FAILED|ERROR)|^E  ' "$work/$python-$torch.log" | head -n 60; say "$passed"; failed=1; }
  say "Python $python, torch $torch: $passed; import on top of torch: $imports" | tee -a "$work/matrix.txt"
  rm -rf "$env" "$sim"
}

failed=0
for pair in "$@"; do cell "${pair%%:*}" "${pair##*:}"; done
exit "$failed"
