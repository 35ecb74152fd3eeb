# SPDX-License-Identifier: Apache-2.0
"""Calls fail, in every operation; `make faults` lets every one fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import distorch_sim
import every_fault
import pytest
import torch

TOOL = Path(__file__).resolve().parents[3] / "tools/faults.py"
PRELOADED = Path(distorch_sim.__file__).parent / "libos_faults.so"


@pytest.mark.timeout(900)
def test_faults_are_told_and_leave_nothing() -> None:
    """The first call of each kind, and every 400th; in a process of its own, as the library that refuses stands before the C library."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LD_PRELOAD": str(PRELOADED)}
    ended = subprocess.run(
        [sys.executable, str(TOOL), "400"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=880,
    )
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-4000:]
    rows = [line.split("  ") for line in ended.stdout.splitlines()]
    assert {row[0] for row in rows[1:-1]} == {op.name for op in every_fault.OPERATIONS}
    injected, told, went_on, _, _, left, changed = ended.stdout.splitlines()[-1].split()[1:]
    assert int(injected) == int(told) + int(went_on) > 40
    assert (left, changed) == ("0", "0")


def test_what_is_left_behind_is_seen() -> None:
    """An operation that keeps a tensor, and changes the model, when a copy fails."""
    kept: list[torch.Tensor] = []

    def bad(world: every_fault.World) -> None:
        try:
            world.model.head.weight.to("sim:0")
        except RuntimeError:
            kept.append(torch.zeros(16, device="sim:1"))
            with torch.no_grad():
                world.model.head.weight.add_(1)
            raise

    operation = every_fault.Operation("bad", bad, ("copy",))
    result = every_fault.Result("bad", "copy")
    assert every_fault.one(operation, "copy", 1, False, result)
    assert (result.injected, result.raised, result.leaked, result.changed) == (1, 1, 64, 1)
    assert "64 bytes are left on devices" in result.wrong[0]
    kept.clear()
