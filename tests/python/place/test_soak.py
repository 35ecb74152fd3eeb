# SPDX-License-Identifier: Apache-2.0
"""Many loads, runs and unloads of one process: nothing grows."""

from __future__ import annotations

import gc
import os

import psutil
import pytest
import torch
from torch import nn

import distorch

CYCLES, WARM = 400, 100
STRING = "sim:0,30%;sim:1,30%;cpu,*"


def resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


def allocated() -> list[int]:
    return [torch.sim.memory_allocated(i) for i in range(3)]


def open_files() -> int:
    process = psutil.Process()
    return int(process.num_handles() if os.name == "nt" else process.num_fds())


@pytest.mark.usefixtures("sim")
def test_nothing_grows_over_many_loads_runs_and_unloads() -> None:
    model = nn.Sequential(*[nn.Linear(64, 64) for _ in range(8)]).eval()
    value = torch.randn(4, 64)
    inputs = value.to("sim:0")
    before = allocated()
    seen: list[tuple[int, int]] = []
    with torch.inference_mode():
        expected = model(value)
        for cycle in range(CYCLES):
            placed = distorch.place_string(model, STRING, compute="sim:0")
            if cycle % 2:
                executor = distorch.StreamedExecutor(placed)
                for _ in range(3):
                    assert torch.equal(model(inputs).cpu(), expected)
                executor.detach()
            else:
                assert torch.equal(model(inputs).cpu(), expected)
            placed.unload()
            assert allocated() == before, cycle
            if cycle >= WARM and cycle % 50 == 0:
                gc.collect()
                seen.append((resident_bytes(), open_files()))
    assert {files for _, files in seen} == {seen[0][1]}
    assert seen[-1][0] <= 1.01 * seen[0][0], seen
    assert len(distorch.placements()) == 0
