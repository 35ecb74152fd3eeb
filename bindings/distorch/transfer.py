# SPDX-License-Identifier: Apache-2.0
"""Moves tensors between devices by the fastest way there is, to one device or to several at once.

    copy(target, source)                    # two tensors of one shape and type
    broadcast(block, ["cuda:1", "cuda:2"])  # one block to several devices
    exchange([a, b, c])                     # every device gets every tensor

Between CUDA devices, and from large pageable host tensors, copies go through `distorch/transfer`: peer copies, or two
pinned buffers in turns, whichever was measured to be faster for that pair. Sending to several CUDA devices uses NCCL
where it is there and may be used. Everything else (simulated devices, other vendors, tensors that are not contiguous)
is torch's own copy.

Ordering: a copy comes after the work queued on the current streams of both devices, and before what is queued there
later. The host waits only where its own memory is pageable. May be called from any thread; no call depends on the
current device or changes it.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch

from distorch._load import core
from distorch.printable import logger

_log = logger("distorch")

# Pageable host memory below this goes as torch does it: there is nothing to overlap in one buffer.
PAGEABLE_THRESHOLD = 32 << 20

_lock = threading.Lock()  # guards _groups
_groups: dict[tuple[int, ...], Any] = {}


class TransferError(RuntimeError):
    """A transfer was asked for in a way that cannot be had; the message says why and what to do."""


def copy(target: torch.Tensor, source: torch.Tensor) -> str:
    """Copy `source` into `target`, which may be on another device.

    Returns:
        The way that was used: "peer", "driver", "staged", "direct", or "torch" for torch's own copy.

    Raises:
        ValueError: the shapes or types differ.
        RuntimeError, MemoryError: the copy failed; the message names devices, bytes and a remedy.
    """
    if target.shape != source.shape or target.dtype != source.dtype:
        raise ValueError(
            f"a copy needs two tensors of one shape and type, not {tuple(source.shape)} {source.dtype} "
            f"and {tuple(target.shape)} {target.dtype}"
        )
    with torch.no_grad():
        router = _router() if _is_routed(target, source) else None
        if router is None:
            target.copy_(source, non_blocking=True)
            return "torch"
        return _copy_routed(router, target, source)


def broadcast(
    source: torch.Tensor, devices: Sequence[str | torch.device], *, nccl: bool | None = None
) -> list[torch.Tensor]:
    """Return `source` on each of `devices`, in their order; one copy over the link to each.

    Where `source` is on a device already, it is returned itself.

    Args:
        source: any tensor.
        devices: where to; a device that is named twice gets one copy.
        nccl: None uses NCCL where it can be used, with one warning where it cannot; True demands it; False never.

    Raises:
        TransferError: NCCL was demanded and cannot be used.
    """
    wanted = [_indexed(device) for device in devices]
    made: dict[torch.device, torch.Tensor] = {source.device: source}
    with torch.no_grad():
        fresh = [d for d in dict.fromkeys(wanted) if d not in made]
        for device in fresh:
            made[device] = torch.empty_like(
                source, device=device, memory_format=torch.contiguous_format
            )
        targets = [made[device] for device in fresh]
        group = _group_for([source, *targets], nccl, at_least=3)
        if group is not None:
            group.broadcast(_end(source), [_end(t) for t in targets], source.nbytes)
        else:
            for target in targets:
                copy(target, source)
    return [made[device] for device in wanted]


def exchange(
    tensors: Sequence[torch.Tensor], *, nccl: bool | None = None
) -> list[list[torch.Tensor]]:
    """Give every device every tensor: row i of the result has all tensors, on the device of `tensors[i]`.

    A tensor is returned itself for its own device; between each ordered pair of devices its bytes move once.

    Args:
        tensors: one for each device that takes part; sizes and types may differ.
        nccl: as in `broadcast`.

    Raises:
        ValueError: two tensors are on one device.
        TransferError: NCCL was demanded and cannot be used.
    """
    places = [tensor.device for tensor in tensors]
    if len(set(places)) != len(places):
        raise ValueError(f"an exchange needs one tensor a device, not {[str(p) for p in places]}")
    with torch.no_grad():
        group = _group_for(tensors, nccl, at_least=2)
        rows = [
            [
                tensor
                if tensor.device == place
                else torch.empty_like(tensor, device=place, memory_format=torch.contiguous_format)
                for tensor in tensors
            ]
            for place in places
        ]
        pairs = [
            (rows[i][j], tensor)
            for i in range(len(places))
            for j, tensor in enumerate(tensors)
            if i != j
        ]
        if group is not None:
            group.exchange([(*_end(s), *_end(t), s.nbytes) for t, s in pairs])
        else:
            for target, source in pairs:
                copy(target, source)
    return rows


def why_not_nccl(devices: Sequence[str | torch.device]) -> str:
    """Return why NCCL cannot serve these devices, or "" when it can."""
    kinds = {_indexed(device).type for device in devices}
    if kinds != {"cuda"}:
        return f"NCCL serves CUDA devices, not {', '.join(sorted(kinds)) or 'none'}"
    for variable in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        reason = _refusal(os.environ.get(variable, ""))
        if reason:
            return reason
    if torch.cuda.get_allocator_backend() == "cudaMallocAsync":
        return _refusal("backend:cudaMallocAsync")
    return ""


def _refusal(configuration: str) -> str:
    try:
        core().check_nccl_allocator(configuration)
    except RuntimeError as error:
        return str(error)
    return ""


def _indexed(device: str | torch.device) -> torch.device:
    found = torch.device(device)
    if found.type in ("cpu", "mps", "meta") or found.index is not None:
        return torch.device(found.type) if found.type == "cpu" else found
    return torch.device(found.type, 0)


def _is_routed(target: torch.Tensor, source: torch.Tensor) -> bool:
    """Whether the core's ways may be better than torch's copy for these two, and can be used."""
    kinds = {target.device.type, source.device.type}
    if "cuda" not in kinds or not kinds <= {"cuda", "cpu"} or target.device == source.device:
        return False
    if not (target.is_contiguous() and source.is_contiguous()):
        return False
    if kinds == {"cuda"}:
        return True
    host = target if target.device.type == "cpu" else source
    return host.nbytes >= PAGEABLE_THRESHOLD and not host.is_pinned()


@functools.cache
def _router() -> Any:
    """Return the core's router with the ways that `distorch links` has measured, or None without CUDA."""
    try:
        router = core().TransferRouter(hip=torch.version.hip is not None)
    except RuntimeError as error:
        _log.info("copies between CUDA devices are left to torch: %s", error)
        return None
    from distorch import links

    for source, target, way, gbps in links.cached_ways():
        router.adopt(source, target, way, gbps)
    return router


def _number(device: torch.device) -> int:
    return -1 if device.type == "cpu" else int(device.index or 0)


def _stream(device: torch.device) -> int:
    return int(torch.cuda.current_stream(device).cuda_stream)


def _end(tensor: torch.Tensor) -> tuple[int, int, int]:
    return tensor.data_ptr(), _number(tensor.device), _stream(tensor.device)


def _copy_routed(router: Any, target: torch.Tensor, source: torch.Tensor) -> str:
    """Queue the copy on one end's current stream, ordered with the other end's in both directions."""
    on = target.device if target.device.type == "cuda" else source.device
    both = target.device.type == source.device.type == "cuda"
    if both:
        here, there = torch.cuda.current_stream(on), torch.cuda.current_stream(source.device)
        here.wait_stream(there)
    way = router.copy(
        target.data_ptr(),
        _number(target.device),
        source.data_ptr(),
        _number(source.device),
        source.nbytes,
        _number(on),
        _stream(on),
    )
    if both:
        there.wait_stream(here)  # the source may be freed or written behind the copy only
    return str(way)


def _group_for(tensors: Sequence[torch.Tensor], nccl: bool | None, at_least: int) -> Any:
    """Return the communicator over the tensors' devices, or None where copies are to be used."""
    if nccl is False or len(tensors) < (2 if nccl else at_least):
        return None
    devices = [tensor.device for tensor in tensors]
    reason = why_not_nccl(devices)
    if not reason and not all(tensor.is_contiguous() for tensor in tensors):
        reason = "NCCL sends contiguous tensors only: call .contiguous() first"
    if not reason:
        try:
            return _communicator(tuple(sorted(_number(device) for device in devices)))
        except (RuntimeError, ValueError) as error:
            reason = str(error)
    if nccl:
        raise TransferError(reason)
    if {device.type for device in devices} == {"cuda"}:
        _warn_once(reason)
    return None


def _communicator(devices: tuple[int, ...]) -> Any:
    """Return the one communicator over these devices; making it takes a good part of a second."""
    with _lock:
        if devices not in _groups:
            _groups[devices] = core().NcclGroup(list(devices))
        return _groups[devices]


@functools.cache
def _warn_once(reason: str) -> None:
    _log.warning("NCCL is not used: %s", reason)


def close() -> None:
    """Give communicators and staging buffers back. No transfer may be under way."""
    with _lock:
        _groups.clear()
    clear: Callable[[], None] = _router.cache_clear
    clear()
