# SPDX-License-Identifier: Apache-2.0
"""Tensors inside nested values: tuples, named tuples, lists, dictionaries and dataclasses."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

# A tensor and where it is, as "0", "pe" or "options.sigmas" -> the tensor to have in its place.
Change = Callable[[torch.Tensor, str], Any]


def map_tensors(value: Any, change: Change, path: str = "", rebuilt: Any = None) -> Any:
    """Return `value` with each tensor replaced by `change(tensor, path)`.

    What holds no changed tensor is given back itself, not a copy. `rebuilt`, if given, collects (original, copy) of
    the dictionaries that had to be copied (`write_back`).
    """
    if isinstance(value, torch.Tensor):
        return change(value, path)
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    prefix = f"{path}." if path else ""
    if isinstance(value, (tuple, list)):
        items = [map_tensors(v, change, f"{prefix}{i}", rebuilt) for i, v in enumerate(value)]
        if all(a is b for a, b in zip(items, value, strict=True)):
            return value
        if isinstance(value, list):
            return items
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, dict):
        return _map_dict(value, change, prefix, rebuilt)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        mapped = {k: map_tensors(v, change, f"{prefix}{k}", rebuilt) for k, v in fields.items()}
        if all(mapped[k] is fields[k] for k in fields):
            return value
        return dataclasses.replace(value, **mapped)
    return value


def _map_dict(value: dict[Any, Any], change: Change, prefix: str, rebuilt: Any) -> Any:
    items = {k: map_tensors(v, change, f"{prefix}{k}", rebuilt) for k, v in value.items()}
    if all(items[k] is v for k, v in value.items()):
        return value
    result: dict[Any, Any] = items if type(value) is dict else copy.copy(value)
    if result is not items:  # of a class of its own, whose constructor may take other arguments
        for key, item in items.items():
            result[key] = item
    if rebuilt is not None:
        rebuilt.append((value, result, dict(items)))
    return result


def write_back(
    rebuilt: list[tuple[dict[Any, Any], dict[Any, Any], Mapping[Any, Any]]], change: Change
) -> None:
    """Carry over to the originals what was set or deleted in dictionaries that `map_tensors` copied.

    Tensors among it go through `change`.
    """
    missing = object()
    for original, made, before in rebuilt:
        for key, value in made.items():
            if before.get(key, missing) is not value:
                original[key] = map_tensors(value, change)
        for key in [k for k in before if k not in made]:
            original.pop(key, None)


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Yield each tensor in a nested value."""
    found: list[torch.Tensor] = []

    def note(tensor: torch.Tensor, _path: str) -> torch.Tensor:
        found.append(tensor)
        return tensor

    map_tensors(value, note)
    yield from found
