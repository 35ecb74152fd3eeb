# SPDX-License-Identifier: Apache-2.0
"""The Python examples of the README and of the pages run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PAGES = [
    ROOT / name
    for name in (
        "README.md",
        "docs/execution.md",
        "docs/monitoring.md",
        "docs/simulated-devices.md",
    )
]
EXAMPLES = [
    pytest.param(source, page, id=f"{page.stem}-{index}")
    for page in PAGES
    for index, source in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]


def test_every_page_has_an_example() -> None:
    assert {param.values[1] for param in EXAMPLES} == set(PAGES)


@pytest.mark.parametrize(("source", "page"), EXAMPLES)
def test_example_runs(source: str, page: Path) -> None:
    exec(compile(source, str(page), "exec"), {"__name__": "example"})  # noqa: S102
