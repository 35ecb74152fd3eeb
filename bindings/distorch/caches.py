# SPDX-License-Identifier: Apache-2.0
"""Clears what allocators keep but nobody uses, on every device in use."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from dataclasses import dataclass, field

from distorch import devices as _devices


@dataclass(frozen=True)
class CacheReport:
    """What clearing gave back: bytes reserved by torch's allocator before and after, a device; objects collected."""

    before: dict[str, int] = field(default_factory=dict)
    after: dict[str, int] = field(default_factory=dict)
    collected: int = 0

    @property
    def freed(self) -> dict[str, int]:
        """Bytes given back, a device."""
        return {device: self.before[device] - self.after[device] for device in self.before}

    def __str__(self) -> str:
        if not self.before:
            return "no device has been used: nothing to clear"
        return ", ".join(f"{d}: {n / 2**20:.1f} MB freed" for d, n in self.freed.items())


def clear_caches(devices: Iterable[str] | None = None, *, collect: bool = True) -> CacheReport:
    """Give cached memory of the allocators back to the devices.

    Each device is synchronised first, and its module's `empty_cache` is called once a kind, with that device current;
    the current device is restored, also on an error. A device that was never used is left alone.

    Args:
        devices: canonical names; default: all accelerators in use. Names of others are passed over.
        collect: run the garbage collector once before, so that tensors in reference cycles are gone.
    """
    in_use = _devices.devices_in_use()
    chosen = in_use if devices is None else [d for d in devices if d in in_use]
    collected = gc.collect() if collect and chosen else 0
    before = {d: _devices.device_info(d).reserved for d in chosen}
    for kind in dict.fromkeys(_devices.parse_name(d)[0] for d in chosen):
        _clear_kind(kind, [d for d in chosen if _devices.parse_name(d)[0] == kind])
    after = {d: _devices.device_info(d).reserved for d in chosen}
    return CacheReport(before, after, collected)


def _clear_kind(kind: str, names: list[str]) -> None:
    module = _devices.device_module(kind)
    current = _devices.call(module, "current_device")
    try:
        for name in names:
            _devices.synchronize(name)
        # Where the allocator has a cache a device (npu, mlu, xpu) each needs its turn; torch.cuda's clears all at once.
        for name in names if current is not None else names[:1]:
            if current is not None:
                _devices.call(module, "set_device", _devices.parse_name(name)[1])
            _devices.call(module, "empty_cache")
            _devices.call(module, "ipc_collect")
            if kind == "cuda":
                break
    finally:
        if current is not None:
            _devices.call(module, "set_device", current)
