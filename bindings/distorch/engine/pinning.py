# SPDX-License-Identifier: Apache-2.0
"""Pins slabs on the host for fast copies: in segments, below a cap, with a fallback.

No tensor is pinned in part: CUDA refuses a copy of memory that is registered at one end only, and others copy single
tensors of a slab.

Memory that exists is registered with the driver (`cudaHostRegister`), which takes exactly its bytes; memory that torch
allocates pinned is rounded up to a power of two. What cannot be registered stays pageable: its copies go through a
small pinned buffer (`distorch.engine.bounce`).
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Protocol

import torch

from distorch.hostmemory import total_bytes
from distorch.slabs import PAGE, aligned

log = logging.getLogger("distorch")

# A failure costs one segment, and registering small ones one by one costs time.
SEGMENT = 256 * 2**20

# What may be pinned at most: pinned memory cannot be paged out, and Windows refuses more than about half.
_SHARE = 0.4 if sys.platform == "win32" else 0.75


class Registrar(Protocol):
    """What registers host memory with a driver; both return "" or why not."""

    def register(self, address: int, size: int) -> str:
        """Pin `size` bytes from `address` on, both multiples of a page."""

    def unregister(self, address: int) -> str:
        """Undo it."""


class CudaRegistrar:
    """By CUDA's runtime, portable: for every device of the process."""

    _PORTABLE = 1  # cudaHostRegisterPortable

    def __init__(self, runtime: Any = None) -> None:
        """`runtime`: torch's binding of CUDA's runtime by default."""
        self._runtime: Any = runtime or torch.cuda.cudart()

    def register(self, address: int, size: int) -> str:
        """See Registrar."""
        return self._told(self._runtime.cudaHostRegister(address, size, self._PORTABLE))

    def unregister(self, address: int) -> str:
        """See Registrar."""
        return self._told(self._runtime.cudaHostUnregister(address))

    def _told(self, code: Any) -> str:
        if int(code) == 0:
            return ""
        _take_error_off()
        return str(self._runtime.cudaGetErrorString(code))


def _take_error_off() -> None:
    """Let CUDA forget the last error: it would be taken for one of the next kernel that torch launches.

    The only way that torch offers: the launch of a kernel asks for the error, raises it, and clears it.
    """
    with contextlib.suppress(RuntimeError):
        torch.zeros(1, device="cuda")


def registrar_for(device: torch.device) -> Registrar | None:
    """Return what registers host memory for a compute device; None where there is no such thing."""
    return CudaRegistrar() if device.type == "cuda" and torch.version.cuda else None


def default_cap() -> int:
    """Return the bytes that may be pinned unless the caller says otherwise."""
    return int(total_bytes() * _SHARE)


class HostPinner:
    """Pinned slabs of one model. Holds them, so that none is freed while it is registered. One thread at a time.

    Attributes:
        pinned: bytes that are registered now; never above `cap`, nor those of all pinners above the default cap.
        cap: bytes.
        trouble: why something stayed pageable; "" when nothing did.
    """

    total: ClassVar[int] = 0  # bytes registered by all pinners

    def __init__(
        self, registrar: Registrar | None, cap: int | None = None, segment: int = SEGMENT
    ) -> None:
        self._registrar = registrar
        self.cap = default_cap() if cap is None else cap
        self._everywhere = max(self.cap, default_cap())
        self.segment = aligned(segment, PAGE)
        self.pinned = 0
        self.trouble = ""
        self._slabs: dict[int, torch.Tensor] = {}
        self._segments: dict[int, dict[int, int]] = {}  # by slab: address -> bytes

    def pin(
        self, slab: torch.Tensor, borders: Sequence[int] | None = None
    ) -> list[tuple[int, int]]:
        """Register a slab as far as it goes; returns its pinned parts as (begin, end) in bytes, rising.

        `borders`: bytes, rising multiples of a page, where a segment may end besides the slab's end; default: anywhere.
        """
        key, size = slab.data_ptr(), slab.nbytes
        if self._registrar is None or key % PAGE:
            return []
        if key not in self._slabs:
            self._slabs[key] = slab
            self._segments[key] = self._register(key, self._cuts(aligned(size, PAGE), borders))
        return [(a - key, min(a - key + n, size)) for a, n in sorted(self._segments[key].items())]

    def _cuts(self, size: int, borders: Sequence[int] | None) -> list[tuple[int, int]]:
        """Return segments as (begin, bytes): of the usual size, or up to the next border."""
        ends = range(self.segment, size, self.segment) if borders is None else borders
        result: list[tuple[int, int]] = []
        begin = last = 0
        for end in (*ends, size):
            if end - begin > self.segment and last > begin:
                result.append((begin, last - begin))
                begin = last
            last = end
        return [*result, (begin, size - begin)] if size > begin else result

    def _register(self, start: int, segments: Iterable[tuple[int, int]]) -> dict[int, int]:
        assert self._registrar is not None
        done: dict[int, int] = {}
        for offset, part in segments:
            own = self.pinned + part > self.cap
            if own or HostPinner.total + part > self._everywhere:
                reached = f"{self.cap} bytes" if own else f"{self._everywhere} bytes of all models"
                self._warn(f"the cap of {reached} for pinned memory is reached")
                break
            problem = self._registrar.register(start + offset, part)
            if problem:
                self._warn(f"{part} bytes could not be pinned, {self.pinned} are: {problem}")
                break
            done[start + offset] = part
            self.pinned += part
            HostPinner.total += part
        return done

    def _warn(self, why: str) -> None:
        if not self.trouble:
            log.warning("%s. The rest is copied through a pinned buffer, which is slower.", why)
        self.trouble = why

    def keep_only(self, slabs: Iterable[torch.Tensor]) -> None:
        """Unregister all other slabs and let them go."""
        kept = {slab.data_ptr() for slab in slabs}
        for key in [k for k in self._slabs if k not in kept]:
            for address, size in self._segments.pop(key).items():
                assert self._registrar is not None
                problem = self._registrar.unregister(address)
                if problem:
                    log.error("pinned memory could not be given back: %s", problem)
                self.pinned -= size
                HostPinner.total -= size
            del self._slabs[key]

    def close(self) -> None:
        """Unregister everything."""
        self.keep_only(())

    def __del__(self) -> None:
        """Memory must not be freed while it is registered."""
        with contextlib.suppress(Exception):  # the interpreter may be going down
            self.close()
