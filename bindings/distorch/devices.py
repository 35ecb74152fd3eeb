# SPDX-License-Identifier: Apache-2.0
"""The devices of this machine: which there are, how much memory they have, and what they can do.

Every kind that torch knows through a device module (`torch.cuda`, `torch.xpu`, `torch.npu`, …, and PrivateUse1 backends
by the name they gave themselves) is asked in the same way; no capability is derived from a name. A device that has not
been used is not initialised by looking at it: its memory then comes from NVML, or is reported as unknown (0).

All sizes are in bytes. All functions may be called from any thread.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from distorch import _load

if TYPE_CHECKING:
    import torch

# Kinds that torch or an add-on of it may bring. Others are found through the PrivateUse1 name.
KNOWN_KINDS = ("cuda", "xpu", "npu", "mlu", "hpu", "musa", "corex", "mps")


@dataclass(frozen=True)
class DeviceInfo:
    """One device.

    Attributes:
        device: canonical name, "cuda:0", "cpu", "mps".
        kind: the part before the colon.
        index: the part behind it; 0 for cpu and mps.
        name: what the vendor calls it, or "".
        total: bytes in all; 0 when unknown.
        free: bytes that can be had now, counting what torch's allocator has cached; 0 when unknown.
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
    total: int = 0
    free: int = 0
    allocated: int = 0
    reserved: int = 0
    initialized: bool = True
    uuid: str | None = None
    nvml_index: int | None = None
    link_gbps: float = 0.0


def parse_name(device: str) -> tuple[str, int]:
    """Split a device name; an accelerator without an index is index 0. Raises ValueError for what is no name."""
    kind, colon, index = device.strip().lower().partition(":")
    if not kind.isidentifier() or (colon and not index.isdigit()):
        raise ValueError(
            f"{device!r} is no device name; expected a kind and an index, such as 'cuda:0', or 'cpu'"
        )
    return kind, int(index or 0)


def canonical_name(kind: str, index: int) -> str:
    """Return "kind:index", or the bare kind where there is only one."""
    return kind if kind in ("cpu", "mps", "meta") else f"{kind}:{index}"


def name_of(device: torch.device | str) -> str:
    """Return a device's canonical name. Raises ValueError for a string that is no name.

    >>> name_of("CUDA")
    'cuda:0'
    """
    if isinstance(device, str):
        return canonical_name(*parse_name(device))
    return canonical_name(device.type, device.index or 0)


def device_module(kind: str) -> ModuleType | None:
    """Return `torch.<kind>`, or None where this torch has no such module."""
    import torch

    if kind == "cpu":
        return None
    module = getattr(torch, kind, None)
    return module if isinstance(module, ModuleType) else None


def accelerator_kinds() -> list[str]:
    """Return the kinds of accelerator that this torch knows, whether or not a device is there."""
    import torch

    kinds = [kind for kind in KNOWN_KINDS if device_module(kind) is not None]
    private = torch._C._get_privateuse1_backend_name()
    if private != "privateuseone" and private not in kinds and device_module(private) is not None:
        kinds.append(private)
    return kinds


def _call(module: ModuleType | None, name: str, *args: Any) -> Any:
    """Call a function of a device module; None where there is no such function or it cannot answer."""
    function = getattr(module, name, None)
    if function is None:
        return None
    try:
        return function(*args)
    except (RuntimeError, AssertionError, NotImplementedError, AttributeError, TypeError, OSError):
        return None


def device_count(kind: str) -> int:
    """Return how many devices of a kind there are, without initialising one."""
    if kind == "cpu":
        return 1
    module = device_module(kind)
    if module is None:
        return 0
    if kind == "mps":
        import torch

        return int(torch.backends.mps.is_available())
    return int(_call(module, "device_count") or 0)


def is_initialized(kind: str) -> bool:
    """Return whether this process has used devices of this kind."""
    module = device_module(kind)
    if module is None:
        return kind == "cpu"
    answer = _call(module, "is_initialized")
    return True if answer is None else bool(answer)


def _has_context(kind: str, index: int) -> bool:
    """Return whether this device (not only its kind) has been used: some backends make a context for each."""
    if not is_initialized(kind):
        return False
    if kind != "cuda":
        return True
    import torch

    return bool(torch.cuda.memory_reserved(index) > 0 or torch.cuda.current_device() == index)


def _cpu() -> DeviceInfo:
    total, available = _load.C.host_memory()
    return DeviceInfo("cpu", "cpu", 0, "host memory", int(total), int(available))


def by_cuda_index(devices: Iterable[Any]) -> dict[int, Any]:
    """Return NVML's devices by CUDA's index.

    NVML counts by PCI slot, CUDA puts the fastest first unless CUDA_DEVICE_ORDER says PCI_BUS_ID. Once this process uses
    CUDA the devices are told apart by their UUIDs; before that, the slots' order is taken for CUDA's.
    """
    devices = list(devices)
    by_index = {d.index: d for d in devices}
    slots = {i: by_index[n] for i, n in enumerate(_load.C.visible_nvml_indices(devices))}
    if len(devices) < 2 or not is_initialized("cuda"):
        return slots
    by_uuid = {d.uuid: d for d in devices}
    module = device_module("cuda")
    properties = [_call(module, "get_device_properties", i) for i in slots]
    found = [by_uuid.get(f"GPU-{getattr(p, 'uuid', '')}") for p in properties]
    # Parts of a GPU (MIG) have UUIDs of their own.
    return slots if None in found else dict(enumerate(found))


def _nvml() -> dict[int, Any]:
    """Return NVML's devices by CUDA's index; empty without a driver."""
    return by_cuda_index(_load.C.nvml_devices()[0])


def _memory(kind: str, index: int, module: ModuleType | None) -> tuple[int, int]:
    """Return (free, total) as the device itself tells; free counts what the allocator could give back."""
    info = _call(module, "mem_get_info", index)
    if info is not None:
        free, total = int(info[0]), int(info[1])
        cached = int(_call(module, "memory_reserved", index) or 0) - int(
            _call(module, "memory_allocated", index) or 0
        )
        return free + max(0, cached), total
    if kind == "mps":
        total = int(_call(module, "recommended_max_memory") or 0)
        used = int(_call(module, "driver_allocated_memory") or 0)
        return max(0, total - used), total
    properties = _call(module, "get_device_properties", index)
    total = int(getattr(properties, "total_memory", 0) or 0)
    return max(0, total - int(_call(module, "memory_reserved", index) or 0)), total


def _accelerator(kind: str, index: int, nvml: Any) -> DeviceInfo:
    module = device_module(kind)
    used = _has_context(kind, index)
    name, uuid, nvml_index = "", None, None
    free = total = allocated = reserved = 0
    if nvml is not None:
        name, uuid, nvml_index = nvml.name, nvml.uuid, nvml.index
        free, total = int(nvml.free), int(nvml.total)
    if used:
        free, total = _memory(kind, index, module)
        name = name or str(_call(module, "get_device_name", index) or "")
        allocated = int(_call(module, "memory_allocated", index) or 0)
        reserved = int(_call(module, "memory_reserved", index) or allocated)
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
    if device.startswith("sim:") or source.startswith("sim:"):
        simulated = sys.modules.get("distorch_sim")
        return float(simulated.link_gbps(source, device)) if simulated else 0.0
    with contextlib.suppress(ImportError):
        from distorch import links

        return float(links.cached_gbps(source, device))
    return 0.0


def _all(kinds: Iterable[str] | None) -> Iterator[DeviceInfo]:
    wanted = [*accelerator_kinds(), "cpu"] if kinds is None else list(kinds)
    for kind in wanted:
        if kind == "cpu":
            yield _cpu()
            continue
        count = device_count(kind)
        nvml = _nvml() if kind == "cuda" and count else {}
        for index in range(count):
            yield _accelerator(kind, index, nvml.get(index))


def list_devices(kinds: Iterable[str] | None = None) -> list[DeviceInfo]:
    """Return all devices, accelerators first, `cpu` last; `kinds` restricts the list."""
    return list(_all(kinds))


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


def free_memory(device: str) -> int:
    """Return the bytes that can be had on a device now. Raises ValueError for one that is not there."""
    return device_info(device).free


def total_memory(device: str) -> int:
    """Return the bytes of a device in all. Raises ValueError for one that is not there."""
    return device_info(device).total


def devices_in_use() -> list[str]:
    """Return the accelerators that this process has used, without initialising any."""
    return [
        info.device
        for kind in accelerator_kinds()
        if is_initialized(kind)
        for info in list_devices([kind])
        if info.initialized
    ]


def synchronize(device: str) -> None:
    """Wait until the work given to `device` is done; nothing to wait for on the host."""
    kind, index = parse_name(device)
    module = device_module(kind)
    if module is not None and is_initialized(kind):
        if kind == "mps":
            _call(module, "synchronize")
        else:
            _call(module, "synchronize", index)


def to_allocation_devices(
    compute: str | None = None, reserve: int = 0, infos: Iterable[DeviceInfo] | None = None
) -> list[Any]:
    """Return the planner's table of devices (`distorch.allocation.Device`), with links to the compute device.

    Args:
        compute: links are those to this device; default: the first accelerator, or cpu.
        reserve: bytes to leave free on every accelerator.
        infos: devices listed before; default: all of this machine.
    """
    from distorch.allocation import Device

    table = list(infos) if infos is not None else list_devices()
    compute = compute or table[0].device
    return [
        Device(
            device=info.device,
            total=info.total,
            free=info.free,
            reserve=0 if info.kind == "cpu" else reserve,
            link_gbps=host_link_gbps(compute, info.device),
        )
        for info in table
    ]
