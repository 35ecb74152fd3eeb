# SPDX-License-Identifier: Apache-2.0
"""Host memory in bytes, control-group limits counted (`distorch/device/host_memory.h`)."""

from __future__ import annotations

from distorch import _load


def total_bytes() -> int:
    """Return the host's memory, or the limit of this process's container."""
    return int(_load.C.host_memory()[0])


def available_bytes() -> int:
    """Return what can be used without swapping; file pages that can be dropped count as available."""
    return int(_load.C.host_memory()[1])
