# SPDX-License-Identifier: Apache-2.0
"""Every allocation string in the pages, workflows and logs of ComfyUI-MultiGPU is in the table of what each becomes.

The table is `tests/allocation/predecessor_strings_test.cc`; its strings are looked for in the predecessor's folder
(DISTORCH_PREDECESSOR_PATH).
"""

from __future__ import annotations

import os
import pathlib
import re

import pytest

from distorch.allocation import parse

ROOT = pathlib.Path(__file__).resolve().parents[3]
TABLE = ROOT / "tests" / "allocation" / "predecessor_strings_test.cc"
ENTRY = (
    r"(?:cuda|cpu|xpu|npu|mlu|mps|directml|corex)(?::\d+)?,(?:\*|\d[\d.]*(?:%|[kmg]?b\*?|[kmg])?)"
)
STRING = re.compile(rf"{ENTRY}(?:;{ENTRY})*")


def table() -> set[str]:
    text = TABLE.read_text().split("kCases[]")[1].split("\n};")[0]
    return {match.strip() for match in re.findall(r'\{"([^"]+)"', text)}


def test_every_string_of_the_table_is_read() -> None:
    rows = table()
    assert len(rows) > 30
    for text in rows:
        assert str(parse(text)), text


def test_every_string_of_the_predecessor_is_in_the_table() -> None:
    folder = pathlib.Path(os.environ.get("DISTORCH_PREDECESSOR_PATH", "/nowhere"))
    if not folder.is_dir():
        pytest.skip("DISTORCH_PREDECESSOR_PATH is not set")
    found: set[str] = set()
    for path in folder.rglob("*"):
        if path.suffix in (".md", ".json", ".py", ".sh", ".txt", ".log"):
            found |= set(STRING.findall(path.read_text(errors="replace")))
    assert len(found) >= 12
    assert sorted(found - table()) == []
