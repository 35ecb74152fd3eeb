# SPDX-License-Identifier: Apache-2.0
"""Slabs: the tensors of one layer group that lie on one device, one behind the other, so that they move in one copy.

A slab is exactly as large as its tensors, each begun at a multiple of `ALIGNMENT`. On the host it begins at a page and
owns whole pages, because memory is pinned by pages.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

# Tensors begin at multiples of this many bytes: the alignment that CUDA's own allocator gives.
ALIGNMENT = 256
# Of the host. Larger pages of some systems are multiples of it; pinning rounds by itself there.
PAGE = 4096


def aligned(size: int, to: int = ALIGNMENT) -> int:
    """Round bytes up."""
    return -(-size // to) * to


def layout(tensors: Sequence[torch.Tensor]) -> tuple[list[int], int]:
    """Return where each tensor begins in a slab, and the slab's size; bytes."""
    offsets, size = [], 0
    for tensor in tensors:
        offsets.append(size)
        size += aligned(tensor.nbytes)
    return offsets, size


def view(buffer: torch.Tensor, offset: int, like: torch.Tensor) -> torch.Tensor:
    """Return the bytes of `buffer` from `offset` on, with the type and shape of `like`, contiguous."""
    return buffer[offset : offset + like.nbytes].view(like.dtype).view(like.shape)


def dressed(source: torch.Tensor, data: torch.Tensor, *, lent: bool = False) -> torch.Tensor:
    """Give `data` what `source` is besides its bytes: a parameter with its attributes, or a plain tensor."""
    if not isinstance(source, nn.Parameter):
        return data
    result = nn.Parameter(data, requires_grad=source.requires_grad and not lent)
    result.__dict__.update(source.__dict__)
    return result


def allocate(size: int, device: torch.device) -> torch.Tensor:
    """Return an uninitialised slab of `size` bytes."""
    if device.type != "cpu":
        return torch.empty(size, dtype=torch.uint8, device=device)
    whole = torch.empty(aligned(size, PAGE) + PAGE, dtype=torch.uint8)
    start = -whole.data_ptr() % PAGE
    return whole[start : start + size]


def find(tensors: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """Return the slab in which exactly these tensors lie in this order, or None when they do not."""
    offsets, size = layout(tensors)
    first = tensors[0]
    storage = first.untyped_storage()
    begin = first.data_ptr()
    for tensor, offset in zip(tensors, offsets, strict=True):
        same = tensor.untyped_storage().data_ptr() == storage.data_ptr()
        if not same or tensor.data_ptr() != begin + offset or not tensor.is_contiguous():
            return None
    start = begin - storage.data_ptr()
    whole = size if first.device.type != "cpu" else aligned(size, PAGE) + PAGE
    if storage.nbytes() != whole or start + size > whole:
        return None  # part of something larger, such as a mapped file
    result = torch.empty(0, dtype=torch.uint8, device=first.device)
    return result.set_(storage, start, (size,), (1,))


def pack(tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Copy tensors of one device into a new slab; returns it and the tensors as views of it.

    What is packed already is given back as it is. Raises torch.OutOfMemoryError when there is no room for the copy.
    """
    packed = find(tensors)
    if packed is not None:
        return packed, list(tensors)
    offsets, size = layout(tensors)
    slab = allocate(size, tensors[0].device)
    views = []
    for tensor, offset in zip(tensors, offsets, strict=True):
        there = view(slab, offset, tensor)
        there.copy_(tensor)
        views.append(dressed(tensor, there))
    return slab, views
