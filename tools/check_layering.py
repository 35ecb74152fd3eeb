# SPDX-License-Identifier: Apache-2.0
"""Checks that no folder uses one that lies after it on the road (docs/architecture.md), in C++ and in Python.

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
PYTHON_IMPORT = re.compile(
    r"^\s*(?:from\s+([\w.]+)\s+import\s+([\w, ]+|\()|import\s+([\w.]+))", re.MULTILINE
)

# folder -> what an include or import may not start with
FORBIDDEN = {
    "allocation": (
        "torch/", "ATen/", "c10/", "cuda", "Python.h", "pybind11/",
        "distorch/", "bindings/", "fstream", "filesystem", "chrono", "ctime",
    ),
    "distorch": ("ATen/", "c10/", "torch/extension", "torch/torch", "torch/csrc/api", "Python.h", "pybind11/", "bindings/"),
    "bindings": ("ATen/", "c10/", "torch/extension", "torch/torch", "tests/", "patches/", "nodes/"),
}  # fmt: skip
# Headers that a C++ program compiles with its own libtorch; nothing else of the project includes them.
ADAPTERS = (
    "distorch/torch_module.h",
    "distorch/torch_module_table.h",
    "distorch/torch_streamer.h",
)
COMFYUI = ("comfy", "folder_paths", "server", "execution")
FORBIDDEN_IMPORTS = {
    "bindings/distorch": (*COMFYUI, "nodes", "patches"),
    "patches": ("nodes",),
    "patches/seams": ("patches.placing", "patches.ejecting", "patches.view"),
    "patches/placing": ("patches.ejecting", "patches.view"),
    "patches/ejecting": ("patches.view",),
}


def imported(path: Path, root: Path) -> list[str]:
    """Full names of the modules that a file imports anywhere; relative ones as seen from `root`."""
    found = []
    package = path.relative_to(root).parent.parts
    for source, names, plain in PYTHON_IMPORT.findall(path.read_text()):
        if plain:
            found.append(plain)
            continue
        dots = len(source) - len(source.lstrip("."))
        base = ".".join((*package[: len(package) - dots + 1], source[dots:])) if dots else source
        base = base.rstrip(".")
        each = [name.split(" as ")[0].strip() for name in names.split(",")] if names != "(" else []
        found += [base, *(f"{base}.{name}" for name in each)]
    return found


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
            name = path.relative_to(root)
            found += [
                f"{name}: {folder}/ may not import {module}"
                for module in imported(path, root)
                if any(module == word or module.startswith(word + ".") for word in words)
            ]
    for path in sorted((root / "bindings/distorch").rglob("*.py")):
        name = path.relative_to(root / "bindings/distorch")
        if name.parts[0] not in ("tools", "__main__.py"):
            found += [
                f"{path.relative_to(root)}: the library may not import {module}"
                for module in imported(path, root / "bindings")
                if module.startswith("distorch.tools")
            ]
    settings = root / "patches/settings.py"
    if settings.exists():
        found += [
            f"patches/settings.py: it holds values only and may not import {module}"
            for module in imported(settings, root)
            if module.startswith(("patches", "distorch"))
        ]
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
        (root / "bindings/distorch/place.py").write_text("from distorch.tools import cli\n")
        for room in ("placing", "view"):
            (root / "patches" / room).mkdir(parents=True)
        (root / "patches/settings.py").write_text("from .placing import donors\n")
        (root / "patches/placing/blocks.py").write_text("def f():\n    from ..view import facts\n")
        found = bad_lines(root)
        if {line.split(":")[0] for line in found} != {
            "allocation/planner.cc",
            "bindings/distorch/mover.py",
            "bindings/distorch/place.py",
            "patches/placing/blocks.py",
            "patches/settings.py",
        }:
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
