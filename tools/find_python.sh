#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# find_python.sh VERSION: prints the path of an interpreter with headers and pip: the one of .venv, the system's or pyenv's;
# nothing where there is none.
set -euo pipefail
own=$(dirname "$(realpath "$0")")/../.venv/bin/python
for candidate in "$own" "$(command -v "python$1" || true)" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/"python$1"; do
  [ -x "$candidate" ] || continue
  if "$candidate" - "$1" 2> /dev/null << 'PYTHON'
import pathlib, pip, sys, sysconfig, venv

assert "%d.%d" % sys.version_info[:2] == sys.argv[1]
assert pathlib.Path(sysconfig.get_paths()["include"], "Python.h").exists()
PYTHON
  then echo "$candidate"; exit; fi
done
