# SPDX-License-Identifier: Apache-2.0
"""Host memory in bytes, control-group limits counted (`distorch/device/host_memory.h`)."""

from __future__ import annotations

from distorch import _load


def total_and_available() -> tuple[int, int]:
    """Return what the two functions below do, of one moment and for one reading of the system's files."""
    total, available = _load.C.host_memory()
    return int(total), int(available)


def total_bytes() -> int:
    """Return the host's memory, or the limit of this process's container; 0 where the system does not tell."""
    return total_and_available()[0]


def available_bytes() -> int:
    """Return what can be used without swapping; file pages that can be dropped count as available."""
    return total_and_available()[1]
