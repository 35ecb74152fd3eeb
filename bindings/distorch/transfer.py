# SPDX-License-Identifier: Apache-2.0
"""Moves tensors between devices by the fastest way there is.

    copy(target, source)  # two tensors of one shape and type

Between CUDA devices, and from large pageable host tensors, copies go through `distorch/transfer`: peer copies, or two
pinned buffers in turns, whichever was measured to be faster for that pair. Everything else (simulated devices, other
vendors, tensors that are not contiguous) is torch's own copy.

Ordering: a copy comes after the work queued on the current streams of both devices, and before what is queued there
later. The host waits only where its own memory is pageable. May be called from any thread; no call depends on the
current device or changes it.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import torch

from distorch._load import core
from distorch.printable import logger

_log = logger("distorch")

# Pageable host memory below this goes as torch does it: there is nothing to overlap in one buffer.
PAGEABLE_THRESHOLD = 32 << 20

# How long the host waits at most for a device to do what it was given, which may stand behind a whole step that is
# queued: on a slow device that is well, minutes for a video model. To be set before the first copy.
PATIENCE_SECONDS = 600.0

# What takes no longer is timed by some: it is asked for all the time, and then ten thousand times a second.
_BUSY_SECONDS = 0.02


class StalledDeviceError(RuntimeError):
    """A device did not do in `PATIENCE_SECONDS` what it was given."""


def await_event(event: Any, device: str, size: int) -> None:
    """Wait on the host until what comes before an event of torch's is done, on `device` with `size` bytes.

    Raises:
        StalledDeviceError: it is not in `PATIENCE_SECONDS`; what the device may still write has to be kept.
    """
    begin = time.monotonic()
    while not event.query():
        waited = time.monotonic() - begin
        if waited >= PATIENCE_SECONDS:
            raise StalledDeviceError(
                f"what was queued with {size} bytes on {device} did not end in {PATIENCE_SECONDS:g} s. The device does not "
                "answer any more: restart this process, and look into the system's log (dmesg) for the driver's reason. "
                "What the device may still write is kept until then."
            )
        time.sleep(0 if waited < _BUSY_SECONDS else 0.0001)


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
        router = core().TransferRouter(hip=torch.version.hip is not None, patience=PATIENCE_SECONDS)
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


def close() -> None:
    """Give staging buffers back. No transfer may be under way."""
    clear: Callable[[], None] = _router.cache_clear
    clear()
