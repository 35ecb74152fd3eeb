# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from placing import Model

from distorch.model_blocks import Inventory, inventory


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
