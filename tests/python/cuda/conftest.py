# SPDX-License-Identifier: Apache-2.0
"""The accelerator under test. DISTORCH_CUDA_TESTS_ON=sim puts a simulated one in its place: the dry run."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest
import torch
from gpu import MIB, Gpu

DRY_RUN = os.environ.get("DISTORCH_CUDA_TESTS_ON") == "sim"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if DRY_RUN and item.get_closest_marker("hardware_only"):
            item.add_marker(pytest.mark.skip(reason="visible on hardware only"))
        elif item.get_closest_marker("two_devices") and not DRY_RUN and torch.cuda.device_count() < 2:  # fmt: skip
            item.add_marker(pytest.mark.skip(reason="one CUDA device, two are needed"))


@pytest.fixture
def gpu() -> Iterator[Gpu]:
    """The accelerator, with nothing of an earlier test on it; without gradients."""
    gc.collect()
    with torch.inference_mode():
        if not DRY_RUN:
            found = Gpu("cuda")
            found.synchronize()
            found.module.empty_cache()
            yield found
            found.synchronize()
            return
        import distorch_sim
        from distorch_sim.races import find_races

        torch.set_num_threads(1)  # small models: threads that wait for each other cost more
        distorch_sim.install([64 * MIB] * 2)
        torch.sim.reset_peak_memory_stats(0)
        with find_races() as races:
            yield Gpu("sim")
            gc.collect()
        assert not races, "\n".join(dict.fromkeys(races))
