# SPDX-License-Identifier: Apache-2.0
"""The help pages are what the tool writes, in plain words that ComfyUI can show."""

from __future__ import annotations

import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
PAGES = sorted((ROOT / "web" / "docs").glob("*.md"))


def check(tool: pathlib.Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(tool), "--check"], capture_output=True, text=True, check=False
    )


def test_the_pages_are_up_to_date() -> None:
    done = check(ROOT / "tools" / "node_help.py")
    assert (done.returncode, done.stdout) == (0, "")
    assert len(PAGES) == 47 + 31


def test_a_page_that_differs_is_found(tmp_path: pathlib.Path) -> None:
    (tmp_path / "tools").mkdir()
    tool = tmp_path / "tools" / "node_help.py"
    for name in ("node_help.py", "node_help_others.py"):
        shutil.copy(ROOT / "tools" / name, tool.parent)
    assert subprocess.run([sys.executable, str(tool)], check=False).returncode == 0
    page = tmp_path / "web" / "docs" / "DisTorchPlan.md"
    page.write_text(page.read_text() + "more\n")
    (page.parent / "Unknown.md").write_text("# Unknown\n")
    done = check(tool)
    assert done.returncode == 1
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        "web/docs/DisTorchPlan.md",
        "web/docs/Unknown.md",
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_is_complete(page: pathlib.Path) -> None:
    text = page.read_text(encoding="utf-8")
    heading = text.splitlines()[0].removeprefix("# ")
    assert "".join(heading.split()) == page.stem.replace("_", "")
    assert max(map(len, heading.split())) <= 16, "a longer word is wider than the panel"
    assert "|--" not in text, "so are tables"
    assert [line for line in text.splitlines() if line.startswith("## ")][:2] == [
        "## Inputs",
        "## Outputs",
    ]
    rows = [line for line in text.splitlines() if line.startswith(("- `", "- **"))]
    assert rows
    assert all(re.match(r"- (`|\*\*)\w+\1: ..", row) and len(row) > 12 for row in rows), rows
    wide = [name for name in re.findall(r"`(\w+)`", text) if len(name) > 26]
    assert wide == [], "in letters of one width these are wider than the panel"
