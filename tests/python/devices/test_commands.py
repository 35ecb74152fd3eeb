# SPDX-License-Identifier: Apache-2.0
"""`distorch devices`."""

from __future__ import annotations

import json
import types

import distorch_sim
import pytest
import torch

from distorch.tools.cli import main

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _sim() -> None:
    distorch_sim.install([64 * MIB, 32 * MIB])


def test_devices_as_json(capsys) -> None:
    assert main(["devices", "--json"]) == 0
    rows = {row["device"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["sim:1"]["total"] == 32 * MIB
    assert rows["cpu"]["free"] > 0


def test_devices_as_a_table(capsys) -> None:
    assert main(["devices"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [
        "device",
        "free",
        "GB",
        "total",
        "GB",
        "from",
        "cpu",
        "GB/s",
        "in",
        "use",
        "name",
    ]
    row = next(line for line in lines if line.startswith("sim:0"))
    assert row.split() == ["sim:0", "0.06", "0.06", "25.0", "yes", "Simulated", "accelerator", "0"]


def test_unknown_memory_is_a_question_mark(capsys, monkeypatch) -> None:
    module = types.ModuleType("torch.npu")
    module.device_count = lambda: 1
    module.is_initialized = lambda: False
    monkeypatch.setattr(torch, "npu", module, raising=False)
    main(["devices"])
    row = next(r for r in capsys.readouterr().out.splitlines() if r.startswith("npu:0"))
    assert row.split() == ["npu:0", "?", "?", "-", "no"]
