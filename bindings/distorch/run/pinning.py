# SPDX-License-Identifier: Apache-2.0
"""Pins slabs on the host for fast copies: `distorch/transfer/host_pinner.h`. Below a cap, and within a budget of all.

On CUDA and HIP memory that exists is registered with the driver (`cudaHostRegister`, `hipHostRegister`), which takes
exactly its bytes. What cannot be registered stays pageable: its copies go through small pinned buffers. For other
accelerators (XPU, NPU, …) slabs are made in memory that torch allocates pinned for them (`distorch.run.pinned_memory`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch

from distorch._load import core
from distorch.hostmemory import total_bytes
from distorch.printable import logger
from distorch.run.cuda import CudaDevice, cuda_device
from distorch.run.pinned_memory import PinnedMemory, pins_for
from distorch.slabs import allocate

log = logger("distorch")

# What may be pinned at most: pinned memory cannot be paged out, and Windows refuses more than about half.
_SHARE = 0.4 if sys.platform == "win32" else 0.75


class Budget(Protocol):
    """What all of a process may pin, in bytes."""

    def limit(self) -> int:
        """Return what may be pinned at most."""

    def used(self) -> int:
        """Return what is pinned now, ours included."""

    def add(self, count: int) -> None:
        """Count ours: more, or less if negative."""


class _OwnBudget:
    def __init__(self) -> None:
        self.pinned = 0

    def limit(self) -> int:
        return default_cap()

    def used(self) -> int:
        return self.pinned

    def add(self, count: int) -> None:
        self.pinned += count


_OWN = _OwnBudget()
_budget: Budget = _OWN


def share_budget(budget: Budget | None) -> None:
    """Pin within somebody else's limit, and count there, from the next pinner on; None: within our own again."""
    global _budget
    _budget = _OWN if budget is None else budget


def default_cap() -> int:
    """Return the bytes that may be pinned unless somebody says otherwise."""
    return int(total_bytes() * _SHARE)


def registrar_for(device: torch.device) -> CudaDevice | torch.device | None:
    """Return what pins host memory for a compute device: its entry points, or itself where torch does; None if nobody."""
    return cuda_device(device) or (device if pins_for(device) else None)


class HostPinner:
    """Pinned slabs of one model. One thread at a time.

    A slab is held, and stays pinned, until neither the pinner nor anybody who copies from it needs it any more.
    """

    def __init__(
        self,
        registrar: CudaDevice | torch.device | None,
        cap: int | None = None,
        segment: int | None = None,
    ) -> None:
        """`cap` and `segment` in bytes; by default no cap but the budget's, and the core's segments."""
        self._core: Any = None
        self._memory: PinnedMemory | None = None
        self._said = ""
        if isinstance(registrar, torch.device):
            self._memory = PinnedMemory(_budget, sys.maxsize if cap is None else cap)
        elif registrar is not None:
            more = {} if segment is None else {"segment": segment}
            if cap is not None:
                more["cap"] = cap
            self._core = core().HostPinner(registrar.router, registrar.index, _budget, **more)

    @property
    def pinned(self) -> int:
        """Bytes that are pinned now."""
        by = self._core or self._memory
        return int(by.pinned) if by is not None else 0

    @property
    def trouble(self) -> str:
        """Why something stayed pageable; "" when nothing did."""
        by = self._core or self._memory
        return str(by.trouble) if by is not None else ""

    def expect(self, size: int) -> None:
        """So many bytes of slabs are about to be made on the host."""
        if self._memory is not None:
            self._memory.expected = size

    def allocate(self, size: int, device: torch.device) -> torch.Tensor:
        """Return an uninitialised slab, on the host in pinned memory where that is made so."""
        slab = None
        if self._memory is not None and device.type == "cpu":
            slab = self._memory.allocate(size)
        return allocate(size, device) if slab is None else slab

    def pin(self, slab: torch.Tensor, borders: Sequence[int] = ()) -> Any:
        """Register a slab as far as it goes; returns the core's PinnedSlab, or None where nothing is ever pinned.

        `borders`: bytes, rising multiples of a page, where a segment may end besides the slab's end.
        """
        if self._core is None:
            return None
        pinned = self._core.pin(slab.data_ptr(), slab.nbytes, list(borders), slab)
        if self.trouble and not self._said:
            self._said = self.trouble
            log.warning(
                "%s. The rest is copied through a pinned buffer, which is slower.", self._said
            )
        return pinned

    def keep_only(self, slabs: Iterable[torch.Tensor]) -> None:
        """Let go of all other slabs."""
        if self._core is not None:
            self._core.keep_only([slab.data_ptr() for slab in slabs])

    def close(self) -> None:
        """Let go of everything."""
        self.keep_only(())
