# SPDX-License-Identifier: Apache-2.0
"""Shared fixtures. Tests that need a GPU or a real ComfyUI say loudly that they did not run."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest


@pytest.fixture
def sim() -> Iterator[None]:
    """Three simulated devices of 64 MiB, empty and without faults; what a test left is collected."""
    import distorch_sim
    import torch

    gc.collect()
    distorch_sim.install([64 << 20] * 3)
    for index in range(3):
        torch.sim.reset_peak_memory_stats(index)
    yield
    distorch_sim.clear_faults()
    gc.collect()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    need_cuda = [item for item in items if item.get_closest_marker("cuda")]
    if need_cuda and os.environ.get("DISTORCH_CUDA_TESTS_ON") != "sim":
        import torch

        if not torch.cuda.is_available():
            if os.environ.get("DISTORCH_FAIL_WITHOUT_CUDA") == "1":
                raise pytest.UsageError(
                    "DISTORCH_FAIL_WITHOUT_CUDA=1, but torch finds no CUDA device"
                )
            for item in need_cuda:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
    if not os.environ.get("COMFYUI_PATH"):
        for item in items:
            if item.get_closest_marker("comfy"):
                item.add_marker(pytest.mark.skip(reason="COMFYUI_PATH is not set"))


def pytest_terminal_summary(terminalreporter) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    for reason in (
        "COMFYUI_PATH is not set",
        "DISTORCH_PREDECESSOR_PATH is not set",
        "no CUDA device",
    ):
        count = sum(reason in str(report.longrepr) for report in skipped)
        if count:
            terminalreporter.write_line(
                f"NOT RUN: {count} tests ({reason})", yellow=True, bold=True
            )
