# SPDX-License-Identifier: Apache-2.0
"""Checks that no folder uses one that lies after it on the road (docs/architecture.md).

allocation/ knows only Abseil and the standard library; distorch/ may use allocation/ and libtorch's stable ABI;
nothing in either includes pybind11, Python or libtorch's unstable headers. Exit status 1 lists each bad include.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)
PYTHON_IMPORT = re.compile(r"^\s*(?:from|import)\s+([\w.]+)", re.MULTILINE)

# folder -> what an include or import may not start with
FORBIDDEN = {
    "allocation": (
        "torch/", "ATen/", "c10/", "cuda", "nccl", "Python.h", "pybind11/",
        "distorch/", "bindings/", "fstream", "filesystem", "chrono", "ctime",
    ),
    "distorch": ("ATen/", "c10/", "torch/extension", "torch/torch", "torch/csrc/api", "Python.h", "pybind11/", "bindings/"),
    "bindings": ("ATen/", "c10/", "torch/extension", "torch/torch", "tests/", "patches/", "nodes/"),
}  # fmt: skip
# Headers that a C++ program compiles with its own libtorch; nothing else of the project includes them.
ADAPTERS = ("distorch/torch_module.h", "distorch/torch_streamer.h")
FORBIDDEN_IMPORTS = {
    "bindings/distorch": ("comfy", "nodes", "patches", "folder_paths", "server", "execution"),
    "patches": ("nodes",),
}


def bad_lines(root: Path) -> list[str]:
    """Return one line for each include or import that points back or sideways."""
    found = []
    for folder, words in FORBIDDEN.items():
        for path in sorted((root / folder).rglob("*")):
            name = str(path.relative_to(root))
            if path.suffix not in {".h", ".cc", ".cu"}:
                continue
            for match in INCLUDE.finditer(path.read_text()):
                if name in ADAPTERS:
                    continue
                if match[2].startswith(words) or match[2] in ADAPTERS:
                    found.append(f"{path.relative_to(root)}: {folder}/ may not include {match[2]}")
    for folder, words in FORBIDDEN_IMPORTS.items():
        for path in sorted((root / folder).rglob("*.py")):
            for match in PYTHON_IMPORT.finditer(path.read_text()):
                if match[1].split(".")[0] in words:
                    found.append(f"{path.relative_to(root)}: {folder}/ may not import {match[1]}")
    return found


def self_test() -> None:
    """Show that the check can fail: a bad include in a copy of the layout must be found."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "allocation").mkdir()
        (root / "allocation/planner.cc").write_text(
            '#include <vector>\n#include "torch/csrc/stable/tensor.h"\n'
        )
        (root / "bindings/distorch").mkdir(parents=True)
        (root / "bindings/distorch/mover.py").write_text("import comfy.model_management\n")
        found = bad_lines(root)
        if len(found) != 2:
            raise SystemExit(f"the layering check missed a bad line: {found}")


def main() -> int:
    """Run the check; returns the exit status."""
    if "--self-test" in sys.argv:
        self_test()
        return 0
    found = bad_lines(ROOT)
    sys.stdout.write("".join(line + "\n" for line in found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
