# SPDX-License-Identifier: Apache-2.0
"""Slabs: the tensors of one layer group that lie on one device, one behind the other, so that they move in one copy.

A slab is exactly as large as its tensors, each begun at a multiple of `ALIGNMENT`. On the host it begins at a page and
owns whole pages, because memory is pinned by pages. Tensors of whole pages come first, so that a slab can be pinned up to
where one of them ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from distorch.parts import SLAB, parts_of, rebuilt

# Tensors begin at multiples of this many bytes: the alignment that CUDA's own allocator gives.
ALIGNMENT = 256
# Of the host. Larger pages of some systems are multiples of it; pinning rounds by itself there.
PAGE = 4096


def aligned(size: int, to: int = ALIGNMENT) -> int:
    """Round bytes up."""
    return -(-size // to) * to


def layout(tensors: Sequence[torch.Tensor]) -> tuple[list[list[int]], int]:
    """Return where the parts of each tensor begin in a slab, and the slab's size; bytes."""
    offsets: list[list[int]] = []
    size = 0
    for tensor in tensors:
        offsets.append([])
        for part in parts_of(tensor):
            offsets[-1].append(size)
            size += aligned(part.nbytes)
    return offsets, size


def view(buffer: torch.Tensor, offset: int, like: torch.Tensor) -> torch.Tensor:
    """Return the bytes of `buffer` from `offset` on, with the type and shape of the plain `like`, contiguous."""
    return buffer[offset : offset + like.nbytes].view(like.dtype).view(like.shape)


def views(buffer: torch.Tensor, offsets: Sequence[int], like: torch.Tensor) -> list[torch.Tensor]:
    """Return the parts of a tensor like `like` whose bytes lie in `buffer` at these offsets."""
    return [
        view(buffer, offset, part) for offset, part in zip(offsets, parts_of(like), strict=True)
    ]


def slab_of(tensor: torch.Tensor) -> torch.Tensor | None:
    """Return the slab that a tensor was packed into, or None."""
    return getattr(tensor, SLAB, None)


def moved_to(source: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
    """Return what `source` is, with the bytes of `there` and in its slab."""
    result = rebuilt(source, [part.view(part.shape) for part in parts_of(there)])
    slab = slab_of(there)
    if slab is not None:
        setattr(result, SLAB, slab)
    return result


def alias(tensor: torch.Tensor) -> torch.Tensor:
    """Return another tensor of the same bytes: what is noted on one is not noted on the other."""
    return moved_to(tensor, tensor)


def allocate(size: int, device: torch.device) -> torch.Tensor:
    """Return an uninitialised slab of `size` bytes."""
    if device.type != "cpu":
        return torch.empty(size, dtype=torch.uint8, device=device)
    whole = torch.empty(aligned(size, PAGE) + PAGE, dtype=torch.uint8)
    start = -whole.data_ptr() % PAGE
    return whole[start : start + size]


def pack(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Bring tensors of one device together in a slab; returns them as views of it.

    What lies in a slab already stays where it is; only the others are copied, into one new slab. Raises
    torch.OutOfMemoryError when there is no room for the copy.
    """
    loose = [tensor for tensor in tensors if slab_of(tensor) is None]
    loose.sort(key=lambda tensor: any(part.nbytes % PAGE for part in parts_of(tensor)))
    packed: dict[int, torch.Tensor] = {}
    if loose:
        offsets, size = layout(loose)
        slab = allocate(size, loose[0].device)
        for tensor, places in zip(loose, offsets, strict=True):
            parts = views(slab, places, tensor)
            for part, old in zip(parts, parts_of(tensor), strict=True):
                part.copy_(old)
            packed[id(tensor)] = rebuilt(tensor, parts)
            setattr(packed[id(tensor)], SLAB, slab)
    return [packed.get(id(tensor), tensor) for tensor in tensors]


def slabs_of(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return the slabs in which packed tensors lie, each once."""
    found: dict[int, torch.Tensor] = {}
    for tensor in tensors:
        slab = slab_of(tensor)
        assert slab is not None, "only packed tensors are streamed"
        found[id(slab)] = slab
    return list(found.values())


def borders(slab: torch.Tensor, tensors: Sequence[torch.Tensor]) -> list[int]:
    """Return where, in whole pages, one of these tensors begins in the slab: no tensor lies on both sides."""
    first = slab.data_ptr()
    starts = {
        part.data_ptr() - first
        for tensor in tensors
        if slab_of(tensor) is slab
        for part in parts_of(tensor)
    }
    return sorted(start for start in starts if start > 0 and start % PAGE == 0)


@dataclass(frozen=True)
class Run:
    """Bytes that move in one copy: `size` from `begin` on in a slab, to `at` in a slot."""

    slab: torch.Tensor
    begin: int
    at: int
    size: int


def runs(tensors: Sequence[torch.Tensor]) -> tuple[list[Run], int]:
    """Return the copies that bring packed tensors into a slot, in their order, and the bytes of the slot.

    Neighbours in a slab become one copy; a group that was packed at once is a single one.
    """
    result: list[Run] = []
    at = 0
    for tensor in tensors:
        slab = slab_of(tensor)
        assert slab is not None, "only packed tensors are streamed"
        for part in parts_of(tensor):
            begin, size = part.data_ptr() - slab.data_ptr(), aligned(part.nbytes)
            last = result[-1] if result else None
            if last is not None and last.slab is slab and last.begin + last.size == begin:
                result[-1] = Run(slab, last.begin, last.at, last.size + size)
            else:
                result.append(Run(slab, begin, at, size))
            at += size
    return result, at
