# SPDX-License-Identifier: Apache-2.0
"""Small models for the tests of the scan, and their rows among those of everything alive."""

from __future__ import annotations

from torch import nn

from distorch import memory


def block(width: int) -> nn.Module:
    """Three layers, one of them without parameters, one with buffers."""
    return nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU())


def own(rows: list[memory.Row], *models: nn.Module) -> list[memory.Row]:
    """The rows of `models`, in their order; each is the only one of its class."""
    by_class = {row.class_name: row for row in rows}
    return [by_class[type(m).__name__] for m in models]
