# SPDX-License-Identifier: Apache-2.0
"""What a load writes to the log: few lines, each fact once, what the plan noted as warnings."""

from __future__ import annotations

import logging
from typing import Any

import comfy_standin
import pytest

from distorch.allocation import parse


def load(pack: Any, comfy: comfy_standin.StandIn, text: str) -> None:
    ours = comfy.model()
    spec = parse(text, kinds=["sim"])
    request = pack.load("patches.placing.request").Request("sim:0", spec, "node", "wan.safetensors")
    pack.load("patches.placing.adopt").adopt(ours, request)
    comfy.mm.load_models_gpu([ours])
    comfy.mm.current_loaded_models.clear()


def test_at_most_twelve_lines_at_info(
    pack: Any, comfy: comfy_standin.StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger="DisTorch"):
        load(pack, comfy, "sim:1,300kb;cpu,300kb;sim:0,*#sim:0")
    lines = [
        line
        for record in caplog.records
        if record.levelno == logging.INFO
        for line in record.message.splitlines()
    ]
    assert 0 < len(lines) <= 12
    assert len(set(lines)) == len(lines), "nothing twice"
    text = "\n".join(lines)
    for device in ("sim:0", "sim:1", "cpu"):
        assert text.count(f"  {device}: ") == 1
    assert "Final Device/Layer Assignments" not in text
    debug = [r.message for r in caplog.records if r.levelno == logging.DEBUG]
    assert any("Final Device/Layer Assignments" in message for message in debug)


def test_debug_mode_shows_the_tables_and_notes_are_warnings(
    pack: Any, comfy: comfy_standin.StandIn, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    values = pack.load("patches.settings").settings._values
    monkeypatch.setitem(values, "debug_mode", True)
    with caplog.at_level(logging.INFO, logger="DisTorch"):
        load(pack, comfy, "sim:1,300kb#sim:0")
    assert "Final Device/Layer Assignments" in caplog.text
    warned = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert any("cpu" in message for message in warned), warned
