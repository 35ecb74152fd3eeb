# SPDX-License-Identifier: Apache-2.0
"""The plain tensors behind a tensor: itself, or for a quantised class its data and its scales.

A tensor class of torch's wrapper kind says by `__tensor_flatten__` what it is made of and is made again by
`__tensor_unflatten__` (torch.utils._python_dispatch.is_traceable_wrapper_subclass). A class without that, which holds its
own bytes and carries notes about them (GGUF's), is made again by `as_subclass` with the same notes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from distorch.devices import name_of

# Attribute of a tensor that says in which slab it lies; never copied to another.
SLAB = "_distorch_slab"
# Classes whose memory is the tensor's own storage; others may wrap further tensors.
PLAIN_TYPES: tuple[type, ...] = (torch.Tensor, nn.Parameter)

_ROWS = ("crow_indices", "col_indices", "values")
_COLUMNS = ("ccol_indices", "row_indices", "values")
_SPARSE_PARTS: dict[torch.layout, tuple[str, ...]] = {
    torch.sparse_coo: ("_indices", "_values"),
    torch.sparse_csr: _ROWS,
    torch.sparse_bsr: _ROWS,
    torch.sparse_csc: _COLUMNS,
    torch.sparse_bsc: _COLUMNS,
}


def is_composite(tensor: torch.Tensor) -> bool:
    """Whether the tensor is of a class of its own."""
    return type(tensor) not in PLAIN_TYPES


def parts_of(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Return the plain tensors that hold the bytes, in an order that the class keeps."""
    if not is_composite(tensor):
        return [tensor]
    if not hasattr(tensor, "__tensor_flatten__"):
        # Else the class would make itself of the result.
        with torch._C.DisableTorchFunctionSubclass():
            return [tensor.as_subclass(torch.Tensor)]
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in parts_of(getattr(tensor, name))]


def device_names(tensor: torch.Tensor) -> set[str]:
    """Return the devices on which a tensor, or what it is made of, lies."""
    if not is_composite(tensor):
        return {name_of(tensor.device)}
    return {name_of(part.device) for part in parts_of(tensor)}


def tensor_bytes(tensor: torch.Tensor) -> int:
    """Return the bytes of a tensor, those of its parts where it has some (quantised layouts, sparse tensors)."""
    if not is_composite(tensor):
        return plain_bytes(tensor)
    return sum(map(plain_bytes, parts_of(tensor)))


def plain_bytes(tensor: torch.Tensor) -> int:
    """Return the bytes of a tensor that is made of no others, of any layout."""
    if tensor.layout is torch.strided:
        return tensor.nbytes
    parts = _SPARSE_PARTS.get(tensor.layout)
    return sum(getattr(tensor, part)().nbytes for part in parts) if parts else tensor.nbytes


def can_rebuild(tensor: torch.Tensor) -> bool:
    """Whether `rebuilt` gives an equal tensor: its class says how, or it holds no more than bytes and notes."""
    if not is_composite(tensor):
        return True
    if hasattr(tensor, "__tensor_flatten__"):
        whole = hasattr(type(tensor), "__tensor_unflatten__")
        return whole and all(part.is_contiguous() for part in parts_of(tensor))
    # GGUF's keeps the patches to apply there too; it moves them by itself when it is used.
    return hasattr(tensor, "tensor_type") or not any(map(_hides_tensors, vars(tensor).values()))


def _hides_tensors(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_hides_tensors, value))
    return not isinstance(value, bool | int | float | complex | str | bytes | torch.dtype | None)


def rebuilt(source: torch.Tensor, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return `source` with other bytes.

    A parameter that asks for gradients goes on asking: torch chooses kernels by that, also where it computes none. One of
    inference mode stops: what is made of it there asks for none.

    Args:
        source: what it is to be: a plain tensor, a parameter with its attributes, a tensor of another class.
        parts: what holds the bytes, like `parts_of(source)`; not copied.
    """
    left = iter(parts)
    result = _rebuilt(source, left)
    assert next(left, None) is None, "one part for each"
    asks = isinstance(source, nn.Parameter) and source.requires_grad and not source.is_inference()
    if type(source) is nn.Parameter:
        result = nn.Parameter(result, requires_grad=asks)
    elif asks:
        result.requires_grad_()
    # A parameter of another class is one by an attribute, which comes along here: to make one anew would ask the class for
    # a detached copy, which may hold copies of the parts. Without what the class has made anew, and what it made when it
    # was asked for its parts.
    made = set(result.__dict__) | {SLAB}
    if hasattr(source, "__tensor_flatten__"):
        made |= set(source.__tensor_flatten__()[0])
    result.__dict__.update({k: v for k, v in source.__dict__.items() if k not in made})
    return result


def moved(source: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Return a copy of `source` on another device, of its class and with its attributes."""
    if not can_rebuild(source):
        return source.to(device)  # only its class knows all that it holds
    return rebuilt(source, [part.detach().to(device) for part in parts_of(source)])


def version(tensor: torch.Tensor) -> int:
    """Return how often a tensor was written to; -1 for one of inference mode, which does not count."""
    return -1 if tensor.is_inference() else tensor._version


def same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors lie in the same memory, part by part."""
    return [_where(p) for p in parts_of(one)] == [_where(p) for p in parts_of(other)]


def _where(part: torch.Tensor) -> tuple[torch.device, int, int]:
    return part.device, part.data_ptr(), part.nbytes


def _rebuilt(source: torch.Tensor, left: Iterator[torch.Tensor]) -> torch.Tensor:
    if not is_composite(source):
        return next(left)
    if not hasattr(source, "__tensor_flatten__"):
        made = next(left).as_subclass(type(source))
        made.__dict__.update({k: v for k, v in source.__dict__.items() if k != SLAB})
        return made
    names, context = source.__tensor_flatten__()
    inner = {name: _rebuilt(getattr(source, name), left) for name in names}
    # Whoever made the source in inference mode works with it there, where one that was not cannot be detached.
    with torch.inference_mode(source.is_inference()):
        result: torch.Tensor = type(source).__tensor_unflatten__(
            inner, context, source.size(), source.stride()
        )
    return result
