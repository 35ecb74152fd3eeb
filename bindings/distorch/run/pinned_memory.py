# SPDX-License-Identifier: Apache-2.0
"""Pinned host memory of torch's own allocator, for accelerators for which nothing that exists can be registered.

That allocator gives powers of two: memory is taken in few large pieces, each for as many slabs as fill it, so that at most
a sixth of all lies idle; a last slab or two for which that does not hold stay pageable.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

import torch

from distorch.slabs import aligned, unrecorded

if TYPE_CHECKING:
    from distorch.run.pinning import Budget

_IDLE = 1 / 6  # of all that is pinned, at most


def pins_for(device: torch.device) -> bool:
    """Whether torch allocates host memory that is pinned for this device: only for the accelerator that it was built for."""
    if device.type in ("cpu", "cuda"):  # CUDA's is registered
        return False
    here = torch.accelerator.current_accelerator()
    if here is None or here.type != device.type:
        return False
    try:
        return torch.empty(1, dtype=torch.uint8, pin_memory=True).is_pinned()
    except (RuntimeError, NotImplementedError):
        return False


class _Piece:
    """Pinned memory that slabs are cut from; lives as long as one of them does."""

    def __init__(self, memory: torch.Tensor) -> None:
        self.memory, self.used = memory, 0

    @property
    def left(self) -> int:
        return self.memory.nbytes - self.used


class PinnedMemory:
    """Slabs of one model in pinned memory. One thread at a time.

    Attributes:
        expected: bytes of slabs that are still to be made.
        trouble: why torch refused to pin more; "" when it did not.
    """

    def __init__(self, budget: Budget, cap: int) -> None:
        """`cap`: bytes that are pinned for this model at most."""
        self._budget, self._cap = budget, cap
        self._pieces: weakref.WeakSet[_Piece] = weakref.WeakSet()
        self._piece: weakref.ref[_Piece] | None = None
        self.expected = 0
        self.trouble = ""

    @property
    def pinned(self) -> int:
        """Bytes of all pieces that are in use."""
        return sum(piece.memory.nbytes for piece in self._pieces)

    def allocate(self, size: int) -> torch.Tensor | None:
        """Return an uninitialised slab of `size` bytes; None where it is to be pageable."""
        size = aligned(size)
        piece = self._piece() if self._piece is not None else None
        if piece is None or piece.left < size:
            piece = self._next(size)
        self.expected = max(0, self.expected - size)
        if piece is None:
            return None
        with unrecorded():
            slab = piece.memory[piece.used : piece.used + size]
        piece.used += size
        slab.distorch_piece = piece
        return slab

    def _next(self, size: int) -> _Piece | None:
        left = min(self._budget.limit() - self._budget.used(), self._cap - self.pinned)
        rest = max(self.expected, size)
        idle = sum(piece.left for piece in self._pieces)
        lasting = [  # the largest first
            power
            for power in (1 << bits for bits in range(rest.bit_length(), -1, -1))
            if power >= size
            and idle + power - min(power, rest) // size * size <= _IDLE * (self.pinned + power)
        ]
        refused = ""
        for power in (power for power in lasting if power <= left and not self.trouble):
            try:
                with unrecorded():
                    memory = torch.empty(power, dtype=torch.uint8, pin_memory=True)
            except (RuntimeError, MemoryError) as error:
                refused = str(error).partition("\n")[0]
                continue
            piece = _Piece(memory)
            self._pieces.add(piece)
            self._piece = weakref.ref(piece)
            self._budget.add(power)
            weakref.finalize(piece, self._budget.add, -power).atexit = False
            return piece
        self.trouble = self.trouble or refused  # asked no more
        return None
