# SPDX-License-Identifier: Apache-2.0
"""How full each device is, and with what: the parts of its bar in the memory view."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch

from distorch.scan.row import Row


def device_view(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Return one entry a device, accelerators first, then "cpu". All sizes in bytes.

    `models`: weights in `rows`, in whatever memory; `tensors`: what torch holds besides (activations, caches of
    nodes); `unused`: reserved by torch's allocator but not in use; `other`: other processes
    and libraries; `free`. They add up to `total`.
    """
    known = list(rows)
    owned: dict[str, int] = {}
    outside: dict[str, int] = {}
    for row in known:
        for device, size in row.bytes.items():
            beside = row.outside.get(device, 0)
            owned[device] = owned.get(device, 0) + size - beside
            outside[device] = outside.get(device, 0) + beside
    views = [
        _accelerator(
            kind,
            backend,
            index,
            owned.get(f"{kind}:{index}", 0),
            outside.get(f"{kind}:{index}", 0),
        )
        for kind, backend in _backends()
        for index in range(backend.device_count())
    ]
    return [*views, _host(owned.get("cpu", 0) + outside.get("cpu", 0))]


def _backends() -> list[tuple[str, Any]]:
    found = []
    for kind in dict.fromkeys(("cuda", "xpu", str(torch._C._get_privateuse1_backend_name()))):
        backend = getattr(torch, kind, None)
        if all(hasattr(backend, n) for n in ("device_count", "mem_get_info", "memory_allocated")):
            found.append((kind, backend))
    return found


def _accelerator(kind: str, backend: Any, index: int, owned: int, outside: int) -> dict[str, Any]:
    device = f"{kind}:{index}"
    ready = getattr(backend, "is_initialized", lambda: True)()
    allocated = int(backend.memory_allocated(index)) if ready else 0
    reserved = getattr(backend, "memory_reserved", None)
    held = max(int(reserved(index)) if reserved and ready else allocated, allocated)
    free, total = (int(n) for n in backend.mem_get_info(index))
    name = getattr(backend, "get_device_name", lambda _: device)(index)
    owned = min(owned, allocated)
    # Memory that no tensor of a model owns is another library's or, if there is too little of
    # that, in tensors that are no module's.
    foreign = min(outside, max(0, total - free - held))
    inside = min(outside - foreign, allocated - owned)
    tensors = allocated - owned - inside
    return _view(
        device, str(name), total, free, owned + inside + foreign, tensors, held - allocated
    )


def _host(models: int) -> dict[str, Any]:
    sizes = {"MemTotal": 0, "MemAvailable": 0}
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:  # noqa: PTH123 (not a file)
            for line in lines:
                name, _, rest = line.partition(":")
                if name in sizes:
                    sizes[name] = int(rest.split()[0]) * 1024
    except OSError:
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        sizes = {"MemTotal": pages, "MemAvailable": pages}
    total, free = sizes["MemTotal"], sizes["MemAvailable"]
    return _view("cpu", "RAM", total, free, min(models, total - free), 0, 0)


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
