# SPDX-License-Identifier: Apache-2.0
"""What torch holds on each accelerator, and when a change of it is news to the scan."""

from __future__ import annotations

from collections.abc import Mapping

from distorch import devices

# A node that changes the memory of a device by more has loaded or unloaded something.
CHANGE_BYTES = 100 * 1024 * 1024
# One that changes it by more may have made a module that no hook saw.
NOTICED_BYTES = 1024 * 1024


def memory_used() -> dict[str, int]:
    """Return the bytes that torch holds for tensors on each accelerator it has initialised."""
    used: dict[str, int] = {}
    for kind in devices.accelerator_kinds():
        allocated = getattr(devices.device_module(kind), "memory_allocated", None)
        if allocated is None or not devices.is_initialized(kind):
            continue
        for index in range(devices.device_count(kind)):
            used[devices.canonical_name(kind, index)] = int(allocated(index))
    return used


def memory_changed(
    before: Mapping[str, int], after: Mapping[str, int], least: int = CHANGE_BYTES
) -> bool:
    """Whether a device's memory differs by more than `least` bytes."""
    names = before.keys() | after.keys()
    return any(abs(after.get(d, 0) - before.get(d, 0)) > least for d in names)
