# SPDX-License-Identifier: Apache-2.0
"""docs/verification.md is whole: every cell of every ComfyUI, none of them other than it should be."""

from __future__ import annotations

import itertools
import pathlib

PAGE = pathlib.Path(__file__).resolve().parents[3] / "docs" / "verification.md"
WAYS = ("Manager's button", "POST /free", "unload node", "force_full_system_cleanup")
WHEN = ("between prompts", "during a prompt")


def test_every_cell_is_there_and_as_it_should_be() -> None:
    head, *parts = PAGE.read_text(encoding="utf-8").split("\n## ComfyUI ")
    cells = list(itertools.product(("none", "one", "all"), WAYS, WHEN))
    assert len(parts) >= 3
    assert f"{len(cells) * len(parts)} cells, 0 not as they should be." in head
    assert len({part.splitlines()[0] for part in parts}) == len(parts)
    for part in parts:
        rows = [line.split(" | ") for line in part.splitlines() if line.startswith("| ")][1:]
        assert [(row[0].removeprefix("| "), row[1], row[2]) for row in rows] == cells
        for flagged, _, _, devices, _, unloaded, stayed, *_ in rows:
            before, _, after = devices.partition(" → ")
            assert (unloaded == "none") is (before == after), devices
            assert {*unloaded, *stayed} >= {"A", "B"}
            assert flagged != "| all" or unloaded == "AB"
