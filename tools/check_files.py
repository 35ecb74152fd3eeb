# SPDX-License-Identifier: Apache-2.0
"""Checks every tracked source for its licence line, trailing white space and the final new line.

And that nothing is tracked that a tool leaves behind.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path, PurePath

ROOT = Path(__file__).resolve().parent.parent
WITH_LICENCE = {".py", ".pyi", ".h", ".cc", ".cu", ".js", ".css", ".sh", ".cmake"}
TEXT = WITH_LICENCE | {".md", ".txt", ".toml", ".json", ".yml"}
LEFT_BEHIND = ("*.gcov", "*.gcda", "*.gcno", "crash-*", "leak-*", "*.orig", "*.rej", "*.log")


def problems(path: Path) -> list[str]:
    """Return what is wrong with one file."""
    text = path.read_text(encoding="utf-8")
    found = []
    with_licence = path.suffix in WITH_LICENCE or path.name == "CMakeLists.txt"
    if with_licence and "SPDX-License-Identifier: Apache-2.0" not in text[:300]:
        found.append("no SPDX-License-Identifier line in its first 300 characters")
    if text and not text.endswith("\n"):
        found.append("no new line at the end")
    found += [
        f"line {n}: white space at the end"
        for n, line in enumerate(text.split("\n"), 1)
        if line != line.rstrip()
    ]
    return [f"{path.relative_to(ROOT)}: {problem}" for problem in found]


def main() -> int:
    """Run the check; returns the exit status."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    paths = [ROOT / name for name in names]
    found = [
        f"{name}: left behind by a tool"
        for name in names
        if any(PurePath(name).match(pattern) for pattern in LEFT_BEHIND)
    ]
    found += [p for path in paths if path.suffix in TEXT and path.is_file() for p in problems(path)]
    sys.stdout.write("".join(line + "\n" for line in found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
