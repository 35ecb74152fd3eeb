# SPDX-License-Identifier: Apache-2.0
"""Checks that what the documentation names exists: linked files, make targets, presets, commands, source files.

A name that was renamed in the code but not in the pages is found here, not by a reader.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")
MAKE = re.compile(r"`make ([a-z-]+)")
PRESET = re.compile(r"--preset ([a-z]+)")
COMMAND = re.compile(r"`distorch ([a-z0-9]+)")
FILE = re.compile(
    r"`((?:allocation|distorch|bindings|patches|nodes|web|tests|bench|docs|tools|cmake)/[\w./-]+\.\w+)`"
)


def known() -> dict[str, set[str]]:
    """Return what may be named: make targets, presets and commands."""
    makefile = (ROOT / "Makefile").read_text()
    presets = json.loads((ROOT / "CMakePresets.json").read_text())
    cli = (ROOT / "bindings/distorch/tools/cli/__init__.py").read_text()
    return {
        "make target": set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE)),
        "preset": {p["name"] for p in presets["configurePresets"]},
        "command": set(re.findall(r'^    "([a-z0-9]+)": \(', cli, re.MULTILINE)),
    }


def problems(page: Path, names: dict[str, set[str]]) -> list[str]:
    """Return one line for each thing that `page` names and that does not exist."""
    text = page.read_text()
    where = page.relative_to(ROOT)
    found = [
        f"{where}: link to {target}, which does not exist"
        for target in LINK.findall(text)
        if "://" not in target and not (page.parent / target).exists()
    ]
    for kind, pattern in (("make target", MAKE), ("preset", PRESET), ("command", COMMAND)):
        found += [
            f"{where}: unknown {kind} {name}"
            for name in pattern.findall(text)
            if name not in names[kind] and name != "NAME"
        ]
    found += [
        f"{where}: {name} does not exist"
        for name in FILE.findall(text)
        if not (ROOT / name).exists()
    ]
    return found


def main() -> int:
    """Run the check; returns the exit status."""
    names = known()
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    found = [line for page in pages for line in problems(page, names)]
    sys.stdout.write("".join(line + "\n" for line in found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
