# SPDX-License-Identifier: Apache-2.0
"""Devices by the names that the planner and people use."""

from __future__ import annotations

import torch


def name_of(device: torch.device) -> str:
    """ "cuda:0" also for a device without an index; "cpu" and "mps" have none."""
    bare = device.index is None and device.type not in ("cpu", "mps")
    return f"{device.type}:0" if bare else str(device)
