# SPDX-License-Identifier: Apache-2.0
"""Tensors inside nested values: tuples, named tuples, lists, dictionaries, sets, dataclasses, and other objects.

What can be written to is changed where it is and stays the caller's own object: a layer may append to the list that it
was given, and who gave it has to see that. What cannot be written to (a tuple, a frozen dataclass) is made anew.
"""

from __future__ import annotations

import dataclasses
import enum
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

# A tensor and where it is, as "0", "pe" or "options.sigmas" -> the tensor to have in its place.
Change = Callable[[torch.Tensor, str], Any]

_PLAIN = (str, bytes, int, float, complex, bool, type(None), torch.dtype, torch.device)
# Never looked into: what they lead to is not a value of theirs.
_CLOSED = (nn.Module, type, enum.Enum, types.ModuleType, types.FunctionType, types.MethodType)


def map_tensors(
    value: Any,
    change: Change,
    path: str = "",
    *,
    inner: Change | None = None,
    objects: bool = False,
) -> Any:
    """Replace each tensor in a nested value by `change(tensor, path)`; returns the value, or what stands for it.

    Args:
        value: anything.
        change: gives a tensor's successor; itself where nothing is to change.
        path: where the value is.
        inner: the same for tensors in lists, sets and objects, of which a caller may need only a few; default: `change`.
        objects: whether attributes and slots of objects of any class are looked into, as those of a key-value cache.
    """
    return _Walk(inner or change, objects).map(value, path, change)


class _Walk:
    """One pass over a value. Each object is looked into once, also where it leads back to itself."""

    def __init__(self, inner: Change, objects: bool) -> None:
        self._inner, self._objects = inner, objects
        self._seen: dict[int, Any] = {}

    def map(self, value: Any, path: str, change: Change) -> Any:
        if isinstance(value, torch.Tensor):
            return change(value, path)
        if isinstance(value, _PLAIN):
            return value
        if isinstance(value, tuple):
            items = [self.map(v, _join(path, i), change) for i, v in enumerate(value)]
            if all(a is b for a, b in zip(items, value, strict=True)):
                return value
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        if id(value) in self._seen:
            return value
        self._seen[id(value)] = value  # kept, so that no other object gets its id
        if isinstance(value, list):
            for i, item in enumerate(value):
                self._put(value, i, item, self.map(item, _join(path, i), self._inner))
        elif isinstance(value, dict):
            for key, item in list(value.items()):
                self._put(value, key, item, self.map(item, _join(path, key), change))
        elif isinstance(value, set):
            items = [self.map(v, _join(path, "*"), self._inner) for v in value]
            if any(item not in value for item in items if isinstance(item, torch.Tensor)):
                value.clear()
                value.update(items)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            return self._dataclass(value, path, change)
        elif self._objects and not isinstance(value, _CLOSED):
            self._object(value, path, self._inner)
        return value

    @staticmethod
    def _put(holder: Any, key: Any, before: Any, after: Any) -> None:
        if after is not before:
            holder[key] = after

    def _dataclass(self, value: Any, path: str, change: Change) -> Any:
        if not value.__dataclass_params__.frozen:
            self._object(value, path, change)
            return value
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        mapped = {k: self.map(v, _join(path, k), change) for k, v in fields.items()}
        same = all(mapped[k] is fields[k] for k in fields)
        return value if same else dataclasses.replace(value, **mapped)

    def _object(self, value: Any, path: str, change: Change) -> None:
        names = list(getattr(value, "__dict__", ()))
        for cls in type(value).__mro__:
            slots = cls.__dict__.get("__slots__", ())
            names += [slots] if isinstance(slots, str) else slots
        for name in names:
            if name.startswith("__"):
                continue
            item = getattr(value, name, None)
            mapped = self.map(item, _join(path, name), change)
            if mapped is not item:
                object.__setattr__(value, name, mapped)


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Yield each tensor in a nested value, without those of objects."""
    found: list[torch.Tensor] = []

    def note(tensor: torch.Tensor, _path: str) -> torch.Tensor:
        found.append(tensor)
        return tensor

    map_tensors(value, note)
    yield from found


class Exchange:
    """Tensors that stand for others inside the arguments of a call, until they are given back.

    One call at a time, one thread. Both ends keep their identity: what was not written is the caller's tensor again,
    what was written is copied into it.
    """

    def __init__(self) -> None:
        self._stands: dict[int, tuple[torch.Tensor, torch.Tensor, int]] = {}
        self._inside: Any = None

    def note(self, there: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        """`there`, a copy that counts its versions, stands for `source`; returns it."""
        self._stands[id(there)] = there, source, there._version
        return there

    def inside(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Remember the arguments as the call sees them; returns them."""
        self._inside = args, kwargs
        return args, kwargs

    def source(self, tensor: torch.Tensor, _path: str = "") -> torch.Tensor:
        """Return what a tensor stands for, brought up to date; the tensor itself where it stands for none."""
        there, source, version = self._stands.get(id(tensor), (None, tensor, 0))
        if there is not None and there._version != version:
            with torch.no_grad():
                source.copy_(there)
            self._stands[id(tensor)] = there, source, there._version
        return source

    def give_back(self) -> None:
        """The call is over, however it ended: its arguments hold what they held, or what was put there. Once."""
        inside, self._inside = self._inside, None
        if self._stands and inside is not None:
            map_tensors(inside, self.source, objects=True)
        self._stands.clear()
