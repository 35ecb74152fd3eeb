# SPDX-License-Identifier: Apache-2.0
"""How full each device is, and with what: the parts of its bar in the memory view."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from distorch import devices
from distorch.memory.row import Row


def device_view(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Return one entry a device, accelerators first, then "cpu". All sizes in bytes.

    `models`: weights in `rows`, in whatever memory; `tensors`: what torch holds besides (activations, caches of
    nodes); `unused`: reserved by torch's allocator but not in use; `other`: other processes
    and libraries; `free`. They add up to `total`.

    A device that this process has not used is not initialised by looking at it; where its memory is then not known
    (no NVML), it is not in the list.
    """
    known = list(rows)
    owned: dict[str, int] = {}
    outside: dict[str, int] = {}
    for row in known:
        for device, size in row.bytes.items():
            beside = row.outside.get(device, 0)
            owned[device] = owned.get(device, 0) + size - beside
            outside[device] = outside.get(device, 0) + beside
    return [
        _view_of(info, owned.get(info.device, 0), outside.get(info.device, 0))
        for info in devices.list_devices()
        if info.total is not None and info.free is not None
    ]


def _view_of(info: devices.DeviceInfo, owned: int, outside: int) -> dict[str, Any]:
    total, free = info.total or 0, info.free or 0  # known
    if info.kind == "cpu":
        return _view("cpu", "RAM", total, free, min(owned + outside, total - free), 0, 0)
    held = max(info.reserved, info.allocated)
    unused = held - info.allocated
    free = max(0, free - unused)  # there, the cached part counts as free
    owned = min(owned, info.allocated)
    # Memory that no tensor of a model owns is another library's or, if there is too little of
    # that, in tensors that are no module's.
    foreign = min(outside, max(0, total - free - held))
    inside = min(outside - foreign, info.allocated - owned)
    tensors = info.allocated - owned - inside
    models = owned + inside + foreign
    return _view(info.device, info.name or info.device, total, free, models, tensors, unused)


def _view(
    device: str, name: str, total: int, free: int, models: int, tensors: int, unused: int
) -> dict[str, Any]:
    known = models + tensors + unused
    free = max(0, min(free, total - known))
    return {
        "device": device,
        "name": name,
        "total": total,
        "free": free,
        "models": models,
        "tensors": tensors,
        "unused": unused,
        "other": total - free - known,
    }
