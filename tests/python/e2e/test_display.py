# SPDX-License-Identifier: Apache-2.0
"""What is shown while scenes run: lines, or bars in a terminal."""

from __future__ import annotations

import io
import pathlib
import re

from fake_comfy import GB, MB
from fake_runner import PROMPT, Play
from waiting import wait_for

from distorch.tools.e2e import display
from distorch.tools.e2e.events import Outcome, Status, Tracker
from distorch.tools.e2e.memory import Keeper
from distorch.tools.e2e.results import RunResult, SceneResult
from distorch.tools.e2e.workflow import Scene, Workflow
from distorch.tools.monitor import DeviceSample, Sample


def test_lines_name_each_node_and_the_memory(e2e, server) -> None:
    server.plays = [Play(seconds=0.5)]  # ten looks at the memory
    ended = e2e("--monitor")
    lines = ended.out.splitlines()
    assert lines[1] == "[1/1] wan.json"
    assert lines[2] == "        1/3  UNETLoader (1)"
    assert re.fullmatch(
        r"       done  UNETLoader \(1\)  \d\.\d s  \|  sim:0 8692 MB, sim:1 1 MB", lines[3]
    )
    assert "        3/3  Keep it (3, SaveImage)" in lines


def test_quiet_has_a_line_a_scene(e2e, server) -> None:
    ended = e2e("--quiet", "--repeat", "2")
    body = ended.out.split("\n\n")[0].splitlines()
    assert [line[:6] for line in body[1:5]] == ["[1/2] ", "  succ", "[2/2] ", "  succ"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_bars() -> None:
    out = Terminal()
    shown = display.make(out, out, memory=True, quiet=False)
    assert isinstance(shown, display.Rich)
    workflow = Workflow(pathlib.Path("wan.json"), PROMPT)

    class Memory:
        keeper = Keeper()

    Memory.keeper.take(Sample(0.0, "nvml", (DeviceSample("cuda:0", 9 * GB, 15 * GB, 24 * GB),)))
    shown.begins(RunResult("http://x", "0.33.0"), 2, Memory())
    shown.scene_begins(Scene(1, "wan.json", workflow))
    tracker = Tracker("p", workflow.nodes)
    for kind, data in (
        ("executing", {"node": "1"}),
        ("executing", {"node": "2"}),
        ("progress", {"node": "2", "value": 5, "max": 20}),
    ):
        tracker.feed({"type": kind, "data": {"prompt_id": "p", **data}}, 0.0)
        shown.changed(tracker)
    wait_for(lambda: "5/20" in out.getvalue())  # at the next refresh
    ended = SceneResult(1, "wan.json", "wan.json", Outcome(Status.SUCCESS), seconds=79.5)
    ended.rest = {"cuda:0": MB}
    shown.scene_ends(ended, ended.rest)
    shown.ends()
    said = out.getvalue()
    for words in (
        "UNETLoader (1)",
        "KSampler (2)",
        "5/20",
        "1/3 nodes",
        "success in 79.5 s",
        "9.0 / 24.0 GB",
    ):
        assert words in said
