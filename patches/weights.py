# SPDX-License-Identifier: Apache-2.0
"""Writes the tensors of a placed model: from their host copies, with the patches that they have.

Patches are computed by the core's own function, at full precision, on the compute device. Hook LoRAs
are written by the core into the stored tensors while a prompt's part samples, and taken out after it:
a tensor that leaves its device meanwhile comes along as it is.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable
from typing import Any

import torch

from distorch.slabs import alias

from .blocks import Cell

HOST = torch.device("cpu")
_LOW_PRECISION = torch.float8_e4m3fn
_Backup = collections.namedtuple("Dimension", ["weight", "inplace_update"])

Signature = tuple[Any, ...]
#: Equal to no patches at all.
_UNKNOWN: Signature = (object(),)


class Weights:
    """One model's. `patched`: the patches in the tensors now, by key."""

    def __init__(self, compute: torch.device, *, low_precision: bool) -> None:
        """`low_precision`: patched weights on the host are kept as fp8."""
        self._compute, self._low_precision = compute, low_precision
        self.patched: dict[str, Signature] = {}
        #: The core's: what hooks have overwritten, as (tensor of before, its device), by key.
        self.hooked: dict[str, tuple[torch.Tensor, torch.device]] = {}
        self._carried: list[Cell] = []

    def compare(self, patcher: Any, keys: set[str]) -> tuple[dict[str, Signature], set[str]]:
        """What a patcher has for these keys, and the keys whose patches changed since."""
        now = {k: _signature(p) for k, p in patcher.patches.items() if k in keys}
        before = self.patched
        return now, {k for k in {*now, *before} if not _same(now.get(k), before.get(k))}

    def broken_off(self, changed: set[str]) -> None:
        """What these tensors hold is known to nobody."""
        self.patched.update(dict.fromkeys(changed, _UNKNOWN))

    def make(self, patcher: Any, cell: Cell, device: torch.device) -> None:
        """The cell's tensor from its host copy, patched if it has patches."""
        if cell.buffer or cell.key not in patcher.patches:
            patcher.backup.pop(cell.key, None)
            cell.put(cell.host_copy_on(device))
        else:
            self._patch(patcher, cell, device)

    def move(self, patcher: Any, cell: Cell, device: torch.device) -> None:
        """The same tensor on another device."""
        if cell.key not in self.patched:
            cell.put(cell.host_copy_on(device))
        elif device == HOST:
            self.to_host(cell)
        else:
            self._patch(patcher, cell, device)

    def to_host(self, cell: Cell) -> None:
        """A tensor with patches or hooks in it comes along; of others the host copy is there."""
        if cell.key in self.patched:
            cell.put(self._stored(cell.current.to(HOST), HOST))
        elif cell.key in self.hooked:
            cell.put(cell.current.to(HOST))
            self._carried.append(cell)
        else:
            cell.put(cell.host_copy_on(HOST))
        if cell.key in self.hooked:  # the core brings it to that device to take the hooks out
            self.hooked[cell.key] = (self.hooked[cell.key][0].to(HOST), HOST)

    def hooks_are_out(self) -> None:
        """What came along for its hooks only is the host copy again."""
        for cell in self._carried:
            if cell.key not in self.hooked:
                cell.put(cell.host_copy_on(HOST))
        self._carried = [cell for cell in self._carried if cell.key in self.hooked]

    def _patch(self, patcher: Any, cell: Cell, device: torch.device) -> None:
        deferred = hasattr(cell.original, "tensor_type")  # GGUF attaches the patch to the tensor
        where = device if deferred else self._compute
        if deferred:  # not to the tensor that has to be there without it, too
            cell.put(alias(cell.original))
        else:
            cell.put(cell.original if cell.dtype is None else cell.host_copy_on(where))
        patcher.backup[cell.key] = _Backup(cell.original, False)
        in_place, patcher.weight_inplace_update = patcher.weight_inplace_update, False
        try:
            patcher.patch_weight_to_device(cell.key, device_to=where)
        finally:
            patcher.weight_inplace_update = in_place
        made = cell.current
        cell.put(self._stored(made if made.device == device else made.to(device=device), device))

    def _stored(self, tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        """What is kept of a patched weight: fp8 on the host when the user chose low precision."""
        shrink = self._low_precision and device == HOST
        if shrink and tensor.is_floating_point() and tensor.element_size() > 1 and tensor.ndim > 1:
            return tensor.to(_LOW_PRECISION)
        return tensor


def unpin(patcher: Any, cell: Cell) -> None:
    """Before a pinned host tensor is replaced: its registration would outlive it."""
    if cell.key in getattr(patcher, "pinned", ()):
        patcher.unpin_weight(cell.key)


def _signature(patches: Iterable[tuple[Any, ...]]) -> Signature:
    return tuple(part for patch in patches for part in patch)


def _same(one: Signature | None, other: Signature | None) -> bool:
    """Equal numbers and the very same objects: comparing tensors would read them."""
    if one is None or other is None or len(one) != len(other):
        return one is other
    return all(
        a is b or (isinstance(a, (int, float, tuple)) and type(a) is type(b) and _equal(a, b))
        for a, b in zip(one, other, strict=True)
    )


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, tuple):
        return _same(a, b)
    return bool(a == b)
