# SPDX-License-Identifier: Apache-2.0
"""The devices of this machine: which there are, how much memory they have, and what they can do.

Every kind that torch knows through a device module (`torch.cuda`, `torch.xpu`, `torch.npu`, …, and PrivateUse1 backends
by the name they gave themselves) is asked in the same way; no capability is derived from a name. A device that has not
been used is not initialised by looking at it: its memory then comes from NVML, or is unknown (None, never 0).

All sizes are in bytes. All functions may be called from any thread.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from distorch import _load
from distorch.device_kinds import (
    accelerator_kinds,
    call,
    canonical_name,
    device_count,
    device_module,
    device_names,
    has_context,
    is_initialized,
    name_of,
    parse_name,
    torch_kind,
)

__all__ = [
    "DeviceInfo",
    "accelerator_kinds",
    "by_cuda_index",
    "call",
    "canonical_name",
    "device_count",
    "device_info",
    "device_module",
    "device_names",
    "devices_in_use",
    "free_memory",
    "has_context",
    "host_link_gbps",
    "is_initialized",
    "list_devices",
    "name_of",
    "parse_name",
    "synchronize",
    "torch_kind",
]


@dataclass(frozen=True)
class DeviceInfo:
    """One device.

    Attributes:
        device: canonical name, "cuda:0", "cpu", "mps": torch's, also where a vendor has another.
        kind: the part before the colon.
        index: the part behind it; 0 for cpu and mps.
        name: what the vendor calls it, or "".
        total: bytes in all; None when unknown.
        free: bytes that can be had now, counting what torch's allocator has cached; None when unknown.
        allocated: bytes in tensors of this process; 0 where torch does not tell.
        reserved: bytes torch's allocator holds, `allocated` included.
        initialized: whether this process has used the device.
        uuid: "GPU-…" where it is known.
        nvml_index: NVML's index, which differs from CUDA's under CUDA_VISIBLE_DEVICES.
        link_gbps: nominal or measured GB/s from the host; 0.0 when unknown.
    """

    device: str
    kind: str
    index: int
    name: str = ""
    total: int | None = None
    free: int | None = None
    allocated: int = 0
    reserved: int = 0
    initialized: bool = True
    uuid: str | None = None
    nvml_index: int | None = None
    link_gbps: float = 0.0

    @property
    def used(self) -> int | None:
        """Bytes that cannot be had now; None when unknown."""
        return None if self.total is None or self.free is None else self.total - self.free


def _cpu() -> DeviceInfo:
    total, available = _load.C.host_memory()
    return DeviceInfo("cpu", "cpu", 0, "host memory", int(total), int(available))


def by_cuda_index(devices: Iterable[Any]) -> dict[int, Any]:
    """Return NVML's devices, whole cards and slices of them, by CUDA's index.

    NVML counts by PCI slot, CUDA puts the fastest first unless CUDA_DEVICE_ORDER says PCI_BUS_ID. Once this process uses
    CUDA the devices are told apart by their UUIDs; before that, the slots' order is taken for CUDA's. One that NVML does
    not know by its UUID keeps its place in that order, if no other has it.
    """
    devices = list(devices)
    seen = [devices[i] for i in _load.C.visible_nvml(devices)]
    count = device_count("cuda")
    if 0 < count < len(seen):  # beside a slice CUDA shows no whole card
        seen.sort(key=lambda device: device.slice < 0)
    slots = dict(enumerate(seen))
    if len(devices) < 2 or not is_initialized("cuda"):
        return slots
    by_uuid = {_bare(d.uuid): d for d in devices if d.uuid}
    module = device_module("cuda")
    properties = [call(module, "get_device_properties", i) for i in slots]
    found = [by_uuid.get(str(getattr(p, "uuid", ""))) for p in properties]
    taken = {(d.index, d.slice) for d in found if d is not None}
    left = [d for d in seen if (d.index, d.slice) not in taken]
    for index, device in enumerate(found):
        if device is None and slots[index] in left:
            found[index] = slots[index]
    return {index: device for index, device in enumerate(found) if device is not None}


def _bare(uuid: str) -> str:
    """A UUID as torch tells it: without "GPU-" or "MIG-"."""
    return uuid.partition("-")[2]


def _nvml() -> dict[int, Any]:
    """Return NVML's devices by CUDA's index; empty without a driver."""
    return by_cuda_index(_load.C.nvml_devices()[0])


def _tell(module: ModuleType | None, names: Iterable[str], *args: Any) -> int:
    """Return what the first of these functions of a device module tells; 0 where none does."""
    for name in names:
        told = call(module, name, *args)
        if told is None and args:  # of the one device there is
            told = call(module, name)
        if told is not None:
            return int(told)
    return 0


def _allocated(module: ModuleType | None, index: int) -> int:
    return _tell(module, ("memory_allocated", "current_allocated_memory"), index)


def _reserved(module: ModuleType | None, index: int) -> int:
    return _tell(module, ("memory_reserved", "driver_allocated_memory"), index)


def _memory(index: int, module: ModuleType | None) -> tuple[int | None, int | None]:
    """Return (free, total) as the device itself tells; free counts what the allocator could give back."""
    info = call(module, "mem_get_info", index)
    held = _reserved(module, index)
    if info is not None:
        free, total = int(info[0]), int(info[1])
        return free + max(0, held - _allocated(module, index)), total
    properties = call(module, "get_device_properties", index)
    total = int(getattr(properties, "total_memory", 0) or 0)
    total = total or _tell(module, ("recommended_max_memory",))
    return (max(0, total - held), total) if total else (None, None)


def _accelerator(kind: str, index: int, nvml: Any, *, ask: bool) -> DeviceInfo:
    """`ask`: also a device that has not been used, where nobody else tells its memory."""
    module = device_module(kind)
    used = has_context(kind, index)
    name, uuid, nvml_index = "", None, None
    free = total = None
    allocated = reserved = 0
    if nvml is not None:
        name, uuid, nvml_index = nvml.name, nvml.uuid or None, nvml.index
        free, total = nvml.free, nvml.total
    if used or (ask and free is None):
        free, total = _memory(index, module)
    if used:
        name = name or str(call(module, "get_device_name", index) or "")
        name = name or str(call(module, "device_name", index) or "")
        allocated = _allocated(module, index)
        reserved = _reserved(module, index) or allocated
    return DeviceInfo(
        canonical_name(kind, index),
        kind,
        index,
        name,
        total,
        free,
        allocated,
        reserved,
        used,
        uuid,
        nvml_index,
        host_link_gbps(canonical_name(kind, index)),
    )


def host_link_gbps(device: str, source: str = "cpu") -> float:
    """Return the GB/s from `source` to `device`, as measured by `distorch links` or nominal; 0.0 when unknown."""
    if device == source:
        return 0.0
    kinds = {parse_name(device)[0], parse_name(source)[0]}
    if "sim" in kinds:
        simulated = sys.modules.get("distorch_sim") if kinds <= {"sim", "cpu"} else None
        return float(simulated.link_gbps(source, device)) if simulated else 0.0
    with contextlib.suppress(ImportError):
        from distorch import links

        return float(links.cached_gbps(source, device))
    return 0.0


def _none(_device: str) -> bool:
    return False


def _all(kinds: Iterable[str] | None, asked: Callable[[str], bool] = _none) -> Iterator[DeviceInfo]:
    wanted = [*accelerator_kinds(), "cpu"] if kinds is None else list(kinds)
    for kind in wanted:
        if kind == "cpu":
            yield _cpu()
            continue
        count = device_count(kind)
        nvml = _nvml() if kind == "cuda" and count else {}
        for index in range(count):
            ask = asked(canonical_name(kind, index))
            yield _accelerator(kind, index, nvml.get(index), ask=ask)


def list_devices(
    kinds: Iterable[str] | None = None, asked: Callable[[str], bool] = _none
) -> list[DeviceInfo]:
    """Return all devices, accelerators first, `cpu` last.

    Args:
        kinds: restricts the list.
        asked: whether the device of this name may be initialised, where nobody else tells its memory.
    """
    return list(_all(kinds, asked))


def device_info(device: str) -> DeviceInfo:
    """Return one device. Raises ValueError that names those there are."""
    kind, index = parse_name(device)
    name = canonical_name(kind, index)
    found = list_devices([kind]) if kind == "cpu" or device_module(kind) else []
    for info in found:
        if info.device == name:
            return info
    known = ", ".join(info.device for info in list_devices())
    raise ValueError(f"there is no device {name}; there are: {known}")


def free_memory(device: str) -> int | None:
    """Return the bytes that can be had on a device now, None when unknown. Raises ValueError for one that is not there."""
    return device_info(device).free


def devices_in_use() -> list[str]:
    """Return the accelerators that this process has used, by torch's own word, without initialising any."""
    return [
        canonical_name(kind, index)
        for kind in accelerator_kinds()
        if is_initialized(kind)
        for index in range(device_count(kind))
        if has_context(kind, index)
    ]


def synchronize(device: str) -> None:
    """Wait until the work given to `device` is done; nothing to wait for on the host."""
    kind, index = parse_name(device)
    module = device_module(kind)
    if module is not None and is_initialized(kind):
        call(module, "synchronize", *(() if kind == "mps" else (index,)))
