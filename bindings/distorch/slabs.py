# SPDX-License-Identifier: Apache-2.0
"""Slabs: the tensors of one layer group that lie on one device, one behind the other, so that they move in one copy.

How tensors lie in a slab is decided by `distorch/placement/slab_layout.h`. On the host a slab begins at a page and owns
whole pages, because memory is pinned by pages.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from distorch._load import core
from distorch.parts import SLAB, is_composite, parts_of, rebuilt

# Tensors begin at multiples of this many bytes.
ALIGNMENT: int = core().SLAB_ALIGNMENT
# Of the host. Larger pages of some systems are multiples of it; pinning rounds by itself there.
PAGE: int = core().HOST_PAGE


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
    """Return the bytes of `buffer` from `offset` on, with the type, shape and memory format of the plain `like`."""
    flat = buffer[offset : offset + like.nbytes].view(like.dtype)
    if like.is_contiguous():
        return flat.view(like.shape)
    return flat.as_strided(like.shape, torch.empty_like(like, device="meta").stride())


def views(buffer: torch.Tensor, offsets: Sequence[int], like: torch.Tensor) -> list[torch.Tensor]:
    """Return the parts of a tensor like `like` whose bytes lie in `buffer` at these offsets."""
    return [
        view(buffer, offset, part) for offset, part in zip(offsets, parts_of(like), strict=True)
    ]


def slab_of(tensor: torch.Tensor) -> torch.Tensor | None:
    """Return the slab in which a tensor lies, or None; one that was given other memory since lies in none."""
    slab: torch.Tensor | None = getattr(tensor, SLAB, None)
    if slab is None:
        return None
    memory = slab.untyped_storage().data_ptr()
    stays = all(part.untyped_storage().data_ptr() == memory for part in parts_of(tensor))
    return slab if stays else None


def moved_to(source: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
    """Return what `source` is, with the bytes of `there` and in its slab."""
    result = rebuilt(source, [part.view(part.shape) for part in parts_of(there)])
    slab = slab_of(there)
    if slab is not None:
        setattr(result, SLAB, slab)
    return result


def as_parameter(tensor: torch.Tensor) -> torch.nn.Parameter:
    """Return a tensor as a parameter that asks for no gradient, in the slab in which it lies; itself if it is one."""
    if isinstance(tensor, torch.nn.Parameter):
        return tensor
    made = torch.nn.Parameter(tensor, requires_grad=False)
    slab = slab_of(tensor)
    if slab is not None:
        setattr(made, SLAB, slab)
    return made


def alias(tensor: torch.Tensor) -> torch.Tensor:
    """Return another tensor of the same bytes: what is noted on one is not noted on the other."""
    return moved_to(tensor, tensor)


def allocate(size: int, device: torch.device) -> torch.Tensor:
    """Return an uninitialised slab of `size` bytes."""
    with torch.inference_mode(False):
        if device.type != "cpu":
            return torch.empty(size, dtype=torch.uint8, device=device)
        whole = torch.empty(aligned(size, PAGE) + PAGE, dtype=torch.uint8)
        start = -whole.data_ptr() % PAGE
        return whole[start : start + size]


@contextlib.contextmanager
def unrecorded() -> Iterator[None]:
    """Make plain tensors, not inference tensors, in whatever mode the caller is: they outlive it.

    They are saved, viewed and written to outside of inference mode, too. Entered once for many tensors.
    """
    with torch.inference_mode(False), torch.no_grad():
        yield


def in_slab(
    source: torch.Tensor, slab: torch.Tensor, offsets: Sequence[int], parts: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Return what `source` is, with the bytes of `parts` copied to these offsets of a slab. To be called `unrecorded`."""
    # `.data`: tensors of one slab that are written to do not count as one another's new versions.
    places = [part.data for part in views(slab, offsets, source)]
    for place, part in zip(places, parts, strict=True):
        place.copy_(part)
    result = rebuilt(source, places)
    setattr(result, SLAB, slab)
    return result


def pack(
    tensors: Sequence[torch.Tensor],
    make: Callable[[int, torch.device], torch.Tensor] = allocate,
) -> list[torch.Tensor]:
    """Bring tensors of one device together in a slab; returns them as they lie there.

    What lies in a slab already stays where it is; only the others are copied, into one new slab, which `make` allocates. A
    tensor that is the only user of its memory moves into the slab itself, and its memory is free at once: it is returned
    as it is. Raises torch.OutOfMemoryError when there is no room for the slab.
    """
    loose = [tensor for tensor in tensors if slab_of(tensor) is None]
    packed: dict[int, torch.Tensor] = {}
    if loose:
        sizes = [[part.nbytes for part in parts_of(tensor)] for tensor in loose]
        offsets, size = core().lay_out(sizes)
        slab = make(size, loose[0].device)
        with unrecorded():
            for tensor, places in zip(loose, offsets, strict=True):
                there = in_slab(tensor, slab, places, parts_of(tensor))
                packed[id(tensor)] = tensor if _moves_into(tensor, there) else there
    return [packed.get(id(tensor), tensor) for tensor in tensors]


# Of a storage: the tensor's, and that of the object by which Python counts them.
_USERS_OF_OWN = 2


def _moves_into(tensor: torch.Tensor, there: torch.Tensor) -> bool:
    """Let a tensor have the memory of its copy, if nobody else uses the memory that it has now."""
    if is_composite(tensor) and not hasattr(tensor, "__tensor_flatten__"):
        return False  # what its class notes beside the bytes may be about their address
    pairs = list(zip(parts_of(tensor), parts_of(there), strict=True))
    for part, place in pairs:
        storage = part.untyped_storage()
        users = torch._C._storage_Use_Count(storage._cdata)
        if users > _USERS_OF_OWN or storage.nbytes() != part.nbytes:
            return False
        if part.is_inference() or not torch._has_compatible_shallow_copy_type(part, place):
            return False
    for part, place in pairs:
        part.data = place.data
    setattr(tensor, SLAB, there.__dict__[SLAB])
    return True


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
