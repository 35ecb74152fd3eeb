# SPDX-License-Identifier: Apache-2.0
"""Which tensors of a model are one: the same elements of the same memory, whatever objects and names they have."""

from __future__ import annotations

from typing import Any

import torch

from distorch.parts import PLAIN_TYPES, is_composite, parts_of

# See `tensor_key`.
TensorKey = tuple[Any, ...]


def tensor_key(tensor: torch.Tensor) -> TensorKey:
    """Return what two tensors have in common that are one: the same elements of the same memory.

    Views of other parts of that memory are tensors of their own: each is copied, and counted, by itself. (The engine
    keeps the tensors of a layer group in one slab, a checkpoint may keep all in one storage.) A tensor that is made of
    others has no memory of its own, whatever its storage says: theirs counts.
    """
    if is_composite(tensor) and hasattr(tensor, "__tensor_flatten__"):
        return "parts", *map(tensor_key, parts_of(tensor))
    try:
        own = not is_composite(tensor) or tensor.untyped_storage().nbytes() > 0
        address = tensor.data_ptr() if own else 0
        if address:
            return tensor.device, address, tensor.shape, tensor.stride(), tensor.dtype
    except (RuntimeError, NotImplementedError):
        pass  # a wrapper without storage of its own, or a sparse tensor
    return "object", id(tensor)


class FirstTensors:
    """Tells of a tensor which one before it is the same (`tensor_key`); nearly all are told apart by their address."""

    def __init__(self) -> None:
        self._at: dict[int, tuple[int, torch.Tensor]] = {}
        self._keys: dict[TensorKey, int] = {}

    def of(self, i: int, tensor: torch.Tensor) -> int:
        """Return the index of the first that is this tensor: `i`, that of the tensor itself, where it is new."""
        if type(tensor) in PLAIN_TYPES and tensor.layout is torch.strided:
            try:
                address = tensor.data_ptr()
            except (RuntimeError, NotImplementedError):
                address = 0
            if address and self._at.setdefault(address, (i, tensor))[0] == i:
                return i
        key = tensor_key(tensor)
        if isinstance(key[0], torch.device):
            before, other = self._at.setdefault(key[1], (i, tensor))
            if before != i:
                self._keys.setdefault(tensor_key(other), before)
        return self._keys.setdefault(key, i)
