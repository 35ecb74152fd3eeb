# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gc
from collections.abc import Iterator

import distorch_sim
import pytest
import torch
from placing import Model

from distorch.inventory import Inventory, inventory

MIB = 2**20


@pytest.fixture
def sim() -> Iterator[None]:
    gc.collect()
    distorch_sim.install([64 * MIB] * 3)
    for index in range(3):
        torch.sim.reset_peak_memory_stats(index)
    yield
    distorch_sim.clear_faults()
    gc.collect()


@pytest.fixture
def model() -> Model:
    torch.manual_seed(1)
    return Model().eval()


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def blocks(model: Model) -> Inventory:
    return inventory(model)
