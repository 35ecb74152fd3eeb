# SPDX-License-Identifier: Apache-2.0
"""What one tensor holds: the facts that the C++ registry keeps of it."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from distorch.devices import name_of
from distorch.parts import is_composite

# (device, dtype, storage, data, bytes, numel); see TensorRecord in registry.h.
TensorFacts = tuple[str, str, int, int, int, int]

# What differs when a tensor gets other memory; and what tells memory that was freed and
# given again at the same address apart.
IDENTITY_METHODS = (torch.Tensor.data_ptr,)
DEEP_METHODS = (torch.Tensor.get_device, torch.Tensor.numel, torch.Tensor.element_size)

_WITHOUT_MEMORY = ("meta", "fake")


def describe(tensor: torch.Tensor) -> list[TensorFacts]:
    """Return the facts of `tensor`, one entry for each tensor that it is made of.

    A wrapper (a quantised tensor of any library) is taken apart by torch's own protocol,
    `__tensor_flatten__`; a parameter that is not initialised yet has none.
    """
    found: list[TensorFacts] = []
    waiting: list[tuple[torch.Tensor, int]] = [(tensor, -1)]
    while waiting:
        part, elements = waiting.pop()
        inner = _inner_tensors(part)
        if inner:
            # The elements are the wrapper's; what it is packed into has bytes only.
            outer = _elements(part) if elements < 0 else elements
            waiting.extend((piece, outer if i == 0 else 0) for i, piece in enumerate(inner))
            continue
        facts = _plain_facts(part, elements)
        if facts is not None:
            found.append(facts)
    return found


def expand(
    module: nn.Module,
) -> tuple[list[nn.Module], list[torch.Tensor], list[torch.Tensor]]:
    """Return the children, parameters and buffers of a module with a storage of its own.

    One that another thread is building has none yet: a later scan reads it.
    """
    if not hasattr(module, "_modules"):
        return [], [], []
    return (
        [child for child in module.children() if isinstance(child, nn.Module)],
        list(module.parameters(recurse=False)),
        list(module.buffers(recurse=False)),
    )


def _inner_tensors(tensor: torch.Tensor) -> list[torch.Tensor]:
    if not is_composite(tensor):
        return []
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        return []
    try:
        names: Iterable[str] = flatten()[0]
        inner = [getattr(tensor, name) for name in names]
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return []  # a class with the protocol's name but not its behaviour
    return [piece for piece in inner if isinstance(piece, torch.Tensor)]


def _elements(tensor: torch.Tensor) -> int:
    try:
        return math.prod(tensor.shape)
    except (RuntimeError, TypeError):
        return 0  # no shape yet: torch.nn.parameter.UninitializedParameter


def _plain_facts(tensor: torch.Tensor, elements: int) -> TensorFacts | None:
    if tensor.device.type in _WITHOUT_MEMORY:
        return None
    count = _elements(tensor) if elements < 0 else elements
    dtype = str(tensor.dtype).removeprefix("torch.")
    device = name_of(tensor.device)
    try:
        storage = tensor.untyped_storage()
        size = storage.nbytes()
        base, data = storage.data_ptr(), tensor.data_ptr()
    except (NotImplementedError, RuntimeError):
        return device, dtype, 0, 0, 0, count  # sparse and other kinds without one storage
    if size == 0 or base == 0:
        return device, dtype, 0, 0, 0, count
    return device, dtype, base, data, size, count
