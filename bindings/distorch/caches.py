# SPDX-License-Identifier: Apache-2.0
"""Clears what allocators keep but nobody uses, on every device in use, and tells how much of each device is taken.

Which devices are worth it is decided by `distorch/unload/cache_clearer.h`; this gives it the figures of torch's
allocators and empties them. Neither NVML nor a device that was never used is asked.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from distorch import _load
from distorch import devices as _devices
from distorch.memory.peaks import Ledger


@dataclass(frozen=True)
class CacheReport:
    """What clearing gave back: bytes reserved by torch's allocator before and after, on each device that was cleared.

    Attributes:
        before: reserved bytes before.
        after: reserved bytes after.
        freed: what each device gave back; those that gave nothing are left out.
        failures: "kind: what went wrong".
        collected: objects that the garbage collector found.
    """

    before: dict[str, int] = field(default_factory=dict)
    after: dict[str, int] = field(default_factory=dict)
    freed: dict[str, int] = field(default_factory=dict)
    failures: tuple[str, ...] = ()
    collected: int = 0

    def __str__(self) -> str:
        if not self.before:
            return "no device has been used: nothing to clear"
        freed = {d: self.freed.get(d, 0) for d in self.before}
        return ", ".join(f"{d}: {n / 2**20:.1f} MB freed" for d, n in freed.items())


def clear_caches(
    devices: Iterable[str] | None = None, *, collect: bool = True, changed: bool = False
) -> CacheReport:
    """Give cached memory of the allocators back to the devices.

    Each device that is cleared is synchronised first, and its module's `empty_cache` is called once a kind, with that
    device current; the current device is restored, also on an error. A device that was never used is left alone.

    Args:
        devices: canonical names; default: all accelerators in use. Names of others are passed over.
        collect: run the garbage collector once before, so that tensors in reference cycles are gone.
        changed: only devices that cache something and have changed since they were cleared last; for whoever asks
            often: a device with nothing to do costs some microseconds and is not synchronised.
    """
    names = None if devices is None else list(devices)
    wanted = collect and any(names is None or name in names for name in _devices.devices_in_use())
    collected = gc.collect() if wanted else 0
    report = _clearer().clear(names, changed)
    return CacheReport(report.before, report.after, report.freed, tuple(report.failures), collected)


def taken_bytes(names: Iterable[str] | None = None) -> dict[str, int]:
    """Return the bytes of each accelerator that are taken, by whomever, as the device itself counts.

    What torch's allocator caches counts as taken. Devices that were never used, and those that cannot tell, are left
    out; so is the host.

    Args:
        names: canonical names; default: all accelerators in use.
    """
    used = _devices.devices_in_use()
    found = {}
    for name in used if names is None else [n for n in names if n in used]:
        kind, index = _devices.parse_name(name)
        info = _devices.call(_devices.device_module(kind), "mem_get_info", index)
        state = (int(info[1]) - int(info[0]), 0) if info is not None else _look(name)
        if state is not None:
            found[name] = state[0]
    return found


_with_context: set[str] = (
    set()
)  # a context stays to the end of the process; asking torch for it takes long


def _in_use() -> list[str]:
    kinds = [kind for kind in _devices.accelerator_kinds() if _devices.is_initialized(kind)]
    places = [(kind, index) for kind in kinds for index in range(_devices.device_count(kind))]
    for kind, index in places:
        name = _devices.canonical_name(kind, index)
        if name not in _with_context and _devices.has_context(kind, index):
            _with_context.add(name)
    names = [_devices.canonical_name(kind, index) for kind, index in places]
    return [name for name in names if name in _with_context]


def _look(device: str) -> tuple[int, int] | None:
    """Bytes that the allocator has reserved, and of them allocated; None where it does not tell."""
    kind, index = _devices.parse_name(device)
    ledger = Ledger.of(kind)
    if ledger is not None:
        return ledger.held(index)
    module = _devices.device_module(kind)
    if kind == "mps":
        reserved = _devices.call(module, "driver_allocated_memory")
        allocated = _devices.call(module, "current_allocated_memory")
    else:
        reserved = _devices.call(module, "memory_reserved", index)
        allocated = _devices.call(module, "memory_allocated", index)
    if reserved is None or allocated is None:
        return None
    return int(reserved), int(allocated)


def _empty(names: list[str]) -> None:
    kind = _devices.parse_name(names[0])[0]
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


@functools.cache
def _clearer() -> _load.C.CacheClearer:
    functions: tuple[Callable[..., object], ...] = (_in_use, _look, _empty)
    return _load.core().CacheClearer(*functions)
