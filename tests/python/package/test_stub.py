# SPDX-License-Identifier: Apache-2.0
"""The stub of the compiled core is the one that is made from it."""

from __future__ import annotations

import difflib
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
TOOL = runpy.run_path(str(ROOT / "tools" / "make_stub.py"))


@pytest.fixture(scope="module")
def generated() -> str:
    text: str = TOOL["generated"]()
    return text


def test_the_stub_says_what_the_core_has(generated: str) -> None:
    committed = TOOL["STUB"].read_text(encoding="utf-8")
    difference = difflib.unified_diff(
        committed.splitlines(), generated.splitlines(), "committed", "generated", n=1, lineterm=""
    )
    assert committed == generated, "python tools/make_stub.py\n" + "\n".join(difference)


@pytest.mark.parametrize(
    "line",
    [
        "def host_memory() -> tuple[int, int]: ...",
        "def totals(self) -> dict[str, int]: ...",
        "def transfers(self) -> dict[tuple[str, str], int]: ...",
        "def __eq__(self, other: object) -> bool: ...",
        "built_with_torch: str",
    ],
)
def test_types_are_python_s(generated: str, line: str) -> None:
    assert re.search(rf"^ *{re.escape(line)}$", generated, re.MULTILINE)


def test_nothing_of_this_machine_is_in_it(generated: str) -> None:
    assert "Supports" not in generated
    assert "+cpu" not in generated
