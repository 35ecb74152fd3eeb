#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# check_install.sh VENV: shows that `pip install --no-build-isolation <folder>` works in an environment that has torch
# and nothing else of ours: builds against that torch, downloads no second one, leaves no build tools behind.
# The environment made for it borrows VENV's torch and what torch imports, by a path file.
set -euo pipefail
venv=$(realpath "$1") root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$venv/bin/python" -m venv "$work/env"
site=$("$work/env/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
lender=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
for part in torch functorch torchgen torch-*.dist-info typing_extensions* numpy numpy.libs numpy-* filelock* fsspec* sympy* mpmath* \
  networkx* jinja2* markupsafe* nvidia nvidia_* triton* cuda cuda_*; do
  for path in "$lender"/$part; do [ -e "$path" ] && ln -s "$path" "$site/"; done
done
listing() { find "$site" -maxdepth 1 -mindepth 1 -printf '%f\n' | sort; }
before=$(listing)
unset PYTHONPATH
"$work/env/bin/python" "$root/install.py"  # what ComfyUI-Manager runs: that pip command
cd "$work"
"$work/env/bin/distorch" --version
"$work/env/bin/python" - << 'PYTHON'
import pathlib
import distorch._load as load

import torch

assert load.core().built_with_torch == torch.__version__, (load.core().built_with_torch, torch.__version__)
assert load.load_operators().abi_version() == 2
assert "env/lib" in str(pathlib.Path(load.__file__)), load.__file__
print("built against torch", torch.__version__)
PYTHON
added=$(comm -13 <(echo "$before") <(listing) | tr '\n' ' ')
echo "added to the environment: $added"
[ "$added" = "distorch distorch-0.1.0.dist-info " ] || { echo "more than distorch was installed" >&2; exit 1; }
