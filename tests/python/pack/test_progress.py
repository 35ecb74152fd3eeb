# SPDX-License-Identifier: Apache-2.0
"""A load of over a second shows how far it has come, and can be broken off between two blocks."""

from __future__ import annotations

import logging
import sys
import types
from typing import ClassVar

import comfy_standin
import pytest
from pack_import import Pack


class InterruptedRunError(Exception):
    pass


class Bar:
    """As ComfyUI's: its hook raises when the user has interrupted."""

    made: ClassVar[list[Bar]] = []
    interrupt_at: ClassVar[int | None] = None

    def __init__(self, total: int) -> None:
        self.total, self.values = total, []
        Bar.made.append(self)

    def update_absolute(self, value: int) -> None:
        if Bar.interrupt_at is not None and value >= Bar.interrupt_at:
            raise InterruptedRunError
        self.values.append(value)


@pytest.fixture
def progress(comfy: comfy_standin.StandIn, pack: Pack, monkeypatch: pytest.MonkeyPatch):
    utils = types.ModuleType("comfy.utils")
    utils.ProgressBar = Bar
    monkeypatch.setitem(sys.modules, "comfy.utils", utils)
    monkeypatch.setattr(sys.modules["comfy"], "utils", utils, raising=False)
    monkeypatch.setattr(Bar, "made", [])
    monkeypatch.setattr(Bar, "interrupt_at", None)
    return pack.load("patches.seams.progress")


def place(progress, seconds_each: float, blocks: int = 10) -> int:
    clock, mb = [0.0], 2**20
    show = progress.shown("WAN21", lambda: clock[0])
    for done in range(1, blocks + 1):
        clock[0] += seconds_each
        show(done, blocks, done * mb, blocks * mb)
    return blocks


def test_a_short_load_says_nothing(progress, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "DisTorch"):
        assert place(progress, 0.05) == 10
    assert Bar.made == []
    assert caplog.messages == []


def test_a_long_load_fills_the_nodes_bar_and_logs_each_quarter(
    progress, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "DisTorch"):
        place(progress, 0.5)
    (bar,) = Bar.made
    assert bar.total == 10 * 2**20
    assert bar.values == [n * 2**20 for n in range(2, 11)]
    assert getattr(bar, progress.OURS)
    assert caplog.messages[0] == "WAN21: block 3 of 10 is placed, 3 of 10 MB"
    assert len(caplog.messages) == 4
    assert caplog.messages[-1] == "WAN21: block 10 of 10 is placed, 10 of 10 MB"


def test_an_interrupt_ends_the_load_between_two_blocks(progress) -> None:
    Bar.interrupt_at = 5 * 2**20
    with pytest.raises(InterruptedRunError):
        place(progress, 0.5)
    assert Bar.made[0].values[-1] == 4 * 2**20
