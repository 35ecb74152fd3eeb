# SPDX-License-Identifier: Apache-2.0
"""Where a tensor of a model hangs, without keeping the model alive.

The engine is held by hooks on the model's modules. Were it to hold the modules, a model that nobody uses any more would
stay in memory until the next garbage collection.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import nn


class WeakTensorRef:
    """An entry of a module's table of parameters or buffers; the module is held weakly."""

    __slots__ = ("_module", "kind", "name", "qualified", "table")

    def __init__(self, place: Any) -> None:
        """`place`: has `module`, `name`, `table`, `kind` and `qualified`, as `distorch.model_blocks.TensorRef`."""
        self._module = weakref.ref(place.module)
        self.table: dict[str, Any] = place.table
        self.name: str = place.name
        self.kind: str = place.kind
        self.qualified: str = place.qualified

    @property
    def module(self) -> nn.Module:
        """The module; to be asked for only while the model lives."""
        module = self._module()
        assert module is not None, "the model is gone"
        return module

    def get(self) -> torch.Tensor:
        """Return the tensor as it is now."""
        tensor: torch.Tensor = self.table[self.name]
        return tensor
