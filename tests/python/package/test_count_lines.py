# SPDX-License-Identifier: Apache-2.0
"""tools/count_lines.py: what counts as a line of code, and where files belong."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

TOOL = runpy.run_path(str(Path(__file__).resolve().parents[3] / "tools" / "count_lines.py"))


@pytest.mark.parametrize(
    ("path", "text", "lines"),
    [
        ("a.cc", "// said\n\nint a;  // one\n  // more\nint b;\n", 2),
        ("a.py", '"""Doc."""\n\nx = 1  # one\n# more\ny = [\n    2,\n]\n', 4),
        ("a.py", 'def f():\n    """Doc\n\n    goes on.\n    """\n    return "text"\n', 2),
    ],
)
def test_only_code_counts(path: str, text: str, lines: int) -> None:
    assert TOOL["code_lines"](path, text) == lines


@pytest.mark.parametrize(
    ("path", "stage"),
    [
        ("allocation/parser_amounts.cc", "parse"),
        ("allocation/planner.cc", "plan"),
        ("allocation/mode_choice.h", "run"),
        ("distorch/placement/placement.cc", "place"),
        ("patches/placing/weights.py", "place"),
        ("patches/placing/runner.py", "run"),
        ("distorch/unload/cache_clearer.cc", "clear"),
        ("distorch/unload/managed_models.cc", "unload"),
        ("distorch/telemetry/scan.cc", None),
        ("tests/distorch/unload/managed_models_test.cc", None),
    ],
)
def test_a_file_belongs_to_one_stage(path: str, stage: str | None) -> None:
    assert TOOL["stage_of"](path) == stage


def test_the_table_adds_up() -> None:
    files = {"allocation/parser.cc": "a;\nb;\n", "patches/placing/adopt.py": "c = 1\n"}
    counted = TOOL["count"](files)
    assert counted["parse"] == (2, 0)
    assert counted["place"] == (0, 1)
    assert TOOL["table"](counted, counted)[-1] == "| all | 2 | 1 | 2 | 1 |"
