# SPDX-License-Identifier: Apache-2.0
"""Every ComfyUI in COMFYUI_PATH has what the pack needs, as its sources tell and as it looks while it runs."""

from __future__ import annotations

import pytest
from comfy_harness import ComfyServer, versions

from distorch.tools.comfyui import SEAMS, Source, problems_of

pytestmark = pytest.mark.comfy

PATHS = sorted({v.path for v in versions()}) or [None]


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.name if p else "none")
def test_the_sources_meet_every_need(path) -> None:
    if path is None:
        pytest.skip("COMFYUI_PATH is not set")
    source = Source(path)
    assert [str(p) for p in problems_of(source)] == []
    assert all(source.has(need.module) for seam in SEAMS.values() for need in seam.needs)


LOOK = """
import time
from distorch.tools.comfyui import SEAMS, Running, problems_of
_begin = time.perf_counter()
_found = problems_of(Running())
_seconds = time.perf_counter() - _begin
_tree = Running()
result = {
    "problems": [str(p) for p in _found],
    "seconds": _seconds,
    "not_seen": sorted({n.module for s in SEAMS.values() for n in s.needs if not _tree.has(n.module)}),
}
"""


def test_the_running_one_meets_every_need_and_is_looked_at_in_no_time(comfy: ComfyServer) -> None:
    found = comfy.evaluate(LOOK)
    assert found["problems"] == []
    assert found["not_seen"] == ["main"]
    assert found["seconds"] < 0.020
