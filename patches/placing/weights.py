# SPDX-License-Identifier: Apache-2.0
"""The tensors of a ComfyUI model, as placing sees them: made, hung and dropped on request.

Which one is made, where and when is decided by `distorch/placement/placement.h`. Patches are computed by
the core's own function, at full precision, on the compute device. Hook LoRAs are written by the core
into the stored tensors while a prompt's part samples, and taken out after it: a tensor that leaves its
device meanwhile comes along as it is.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import comfy.float
import torch

from distorch._load import core
from distorch.devices import name_of
from distorch.parts import device_names, parts_of, same_bytes
from distorch.slabs import alias, allocate, as_parameter, in_slab, moved_to, unrecorded
from distorch.tables import Reporter

from .blocks import Block, BlockTensor, streamable

HOST = torch.device("cpu")
_FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_Backup = collections.namedtuple("Dimension", ["weight", "inplace_update"])

Signature = tuple[Any, ...]


class Weights:
    """One model's table (`distorch.tables.TensorTable`).

    Attributes:
        devices: names, by the index that the placement uses.
        patched: the patches that are in the tensors now, by key.
        hooked: the core's: what hooks have overwritten, as (tensor of before, its device), by key.
        before_change: called before the first tensor is made or hung.
    """

    def __init__(
        self, blocks: Sequence[Block], compute: torch.device, *, low_precision: bool
    ) -> None:
        """`low_precision`: patched weights on the host are kept in the file's fp8, where that is what they were."""
        self.tensors = [held for block in blocks for held in block.tensors]
        self.keys = {held.key for held in self.tensors if not held.buffer}
        self._owner = [n for n, block in enumerate(blocks) for _ in block.tensors]
        self._compute, self._low_precision = compute, low_precision
        self.devices: list[str] = []
        self.patched: dict[str, Signature] = {}
        self.hooked: dict[str, tuple[torch.Tensor, torch.device]] = {}
        self.before_change: Callable[[], None] = lambda: None
        self.progress: Reporter | None = None
        self._patcher: Any = None
        self._patches: dict[str, Signature] = {}  # those that a load is to bring
        self._made: dict[int, torch.Tensor] = {}
        self._slabs: dict[int, torch.Tensor] = {}
        self._carried: set[int] = set()
        self._ids = itertools.count(1)

    def placement(
        self, blocks: Sequence[Block], groups: Sequence[str], devices: Iterable[str]
    ) -> Any:
        """What decides for these tensors, while all of them are as they were found."""
        found = [next(iter(device_names(held.original))) for held in self.tensors]
        self.devices = list(dict.fromkeys(["cpu", name_of(self._compute), *devices, *found]))
        index = {name: i for i, name in enumerate(self.devices)}
        rows = [
            (
                block,
                i,
                index[device],
                held.sizes,
                held.dtype in (None, held.original.dtype),
                not self._shrinks(held),
            )
            for i, (block, held, device) in enumerate(
                zip(self._owner, self.tensors, found, strict=True)
            )
        ]
        described = [
            (block.name, group, bool(block.pinned), streamable(block))
            for block, group in zip(blocks, groups, strict=True)
        ]
        return core().Placement(self.devices, index[name_of(self._compute)], described, rows)

    # What a load is about

    def bring(self, placement: Any, patcher: Any, report: Reporter) -> None:
        """Everything to its place, with the patches that a patcher has for it.

        What is replaced goes back to its host copy first: old and new need no memory together. On an
        error these tensors are their host copies, and known to be so.
        """
        self._patches = {k: _signature(p) for k, p in patcher.patches.items() if k in self.keys}
        changed = {
            key
            for key in {*self._patches, *self.patched}
            if not _same(self._patches.get(key), self.patched.get(key))
        }
        self.progress = report
        try:
            with self.using(patcher):
                placement.bring(
                    self,
                    patched=[c.key in self._patches and not c.buffer for c in self.tensors],
                    changed=[c.key in changed for c in self.tensors],
                    give_way=True,
                )
        except BaseException:
            for i, held in enumerate(self.tensors):
                if held.key in changed and not placement.patched(i):
                    self.patched.pop(held.key, None)
                    patcher.backup.pop(held.key, None)
            raise
        finally:
            self.progress = None
        self.patched = self._patches

    @contextlib.contextmanager
    def using(self, patcher: Any) -> Iterator[None]:
        """The patcher whose patches, pins and backups are meant."""
        self._patcher = patcher
        try:
            yield
        finally:
            self._patcher = None

    def hooks_are_out(self, placement: Any) -> None:
        """What came along for its hooks only is the host copy again."""
        if any(self.tensors[i].key not in self.hooked for i in self._carried):
            self._carried.clear()
            placement.bring(
                self,
                patched=[placement.patched(i) for i in range(len(self.tensors))],
                changed=[False] * len(self.tensors),
            )

    def replace(self, moved: Sequence[tuple[BlockTensor, torch.Tensor]]) -> None:
        """Copies on the same device take the places of tensors: the engine has packed them into a slab."""
        ids: dict[int, list[int]] = {}
        for made, entry in self._made.items():
            ids.setdefault(id(entry), []).append(made)
        for held, tensor in moved:
            now = held.current
            for made in ids.get(id(now), ()):
                self._made[made] = tensor if held.buffer else as_parameter(tensor)
            # One host copy: the slab is it from now on.
            if now is held.original:
                held.original = tensor if held.buffer else as_parameter(tensor)
            elif same_bytes(now, held.original):  # with patches noted on it
                held.original = moved_to(held.original, tensor)
            held.put(tensor)

    # What the placement asks for; see distorch.tables.TensorTable

    def make(
        self, i: int, device: int, current: bool, slab: int, offsets: Sequence[int]
    ) -> tuple[int, int]:
        """A tensor on a device."""
        self.before_change()
        held, target = self.tensors[i], torch.device(self.devices[device])
        if current:
            tensor = held.current if slab else held.current.to(target)
        elif held.key in self._patches and not held.buffer:
            tensor = self._patch(held, target)
        else:
            tensor = held.host_copy_on(HOST if slab else target)
        if held.key in self.patched or not current:
            tensor = self._stored(tensor, target, held)
        if slab and [part.nbytes for part in parts_of(tensor)] == held.sizes:
            with unrecorded():
                tensor = in_slab(tensor, self._slabs[slab], offsets, parts_of(tensor))
        made = next(self._ids)
        tensor = tensor if tensor.device == target else tensor.to(target)
        self._made[made] = tensor if held.buffer else as_parameter(tensor)
        if current and held.key in self.hooked and held.key not in self.patched:
            self._carried.add(i)
        return made, 0

    def _patch(self, held: BlockTensor, device: torch.device) -> torch.Tensor:
        patcher, before = self._patcher, held.current
        deferred = hasattr(held.original, "tensor_type")  # GGUF attaches the patch to the tensor
        where = device if deferred else self._compute
        if deferred:  # not to the tensor that has to be there without it, too
            held.put(alias(held.original))
        else:
            held.put(held.original if held.dtype is None else held.host_copy_on(where))
        patcher.backup[held.key] = _Backup(held.original, False)
        in_place, patcher.weight_inplace_update = patcher.weight_inplace_update, False
        try:
            patcher.patch_weight_to_device(held.key, device_to=where)
            return held.current
        finally:
            patcher.weight_inplace_update = in_place
            held.put(before)

    def _stored(
        self, tensor: torch.Tensor, device: torch.device, held: BlockTensor
    ) -> torch.Tensor:
        """What is kept of a patched weight: on the host the file's fp8 again, when the user chose low precision."""
        if device != HOST or held.key not in self._patches or not self._shrinks(held):
            return tensor
        seed = zlib.crc32(held.key.encode())  # the core's, for what it rounds of this weight itself
        rounded = comfy.float.stochastic_rounding(tensor, held.original.dtype, seed=seed)
        return rounded.to(held.original.dtype)

    def _shrinks(self, held: BlockTensor) -> bool:
        """Whether the model wants it wider than the file has it, and the file has it in fp8."""
        found = held.original.dtype
        return self._low_precision and found in _FP8 and held.dtype not in (None, found)

    def hang(self, i: int, made: int) -> None:
        """The module uses it from now on; a pointer change."""
        self.before_change()
        held = self.tensors[i]
        tensor = self._made[made] if made else held.original
        if self._patcher is not None and held.current is not tensor:
            unpin(self._patcher, held)
            if not made:
                self._patcher.backup.pop(held.key, None)
        held.put(tensor)
        if held.key in self.hooked:  # the core brings it to that device to take the hooks out
            device = tensor.device
            before = self.hooked[held.key][0]
            self.hooked[held.key] = (before.to(HOST) if device == HOST else before, device)

    def drop(self, made: int) -> None:
        """Nobody uses it."""
        del self._made[made]

    def make_slab(self, device: int, size: int) -> int:
        """Memory for the tensors of a layer group."""
        self.before_change()
        slab = next(self._ids)
        self._slabs[slab] = allocate(size, torch.device(self.devices[device]))
        return slab

    def seal_slab(self, slab: int) -> None:
        """Nothing more comes into it."""
        del self._slabs[slab]

    def read_back(self) -> list[int]:
        """Where each tensor is."""
        index = {name: i for i, name in enumerate(self.devices)}
        places = []
        for held in self.tensors:
            names = device_names(held.current)
            places.append(index.get(names.pop(), -1) if len(names) == 1 else -1)
        return places

    def place_of(self, i: int) -> str:
        """Where one is, for people."""
        return ", ".join(sorted(device_names(self.tensors[i].current)))

    def written(self, i: int) -> bool:
        """Whether hook LoRAs are in it."""
        return self.tensors[i].key in self.hooked

    def keep_written(self, i: int) -> None:
        """Nothing: the core takes its hooks out itself."""


def unpin(patcher: Any, held: BlockTensor) -> None:
    """Before a pinned host tensor is replaced: its registration would outlive it."""
    if held.key in getattr(patcher, "pinned", ()):
        patcher.unpin_weight(held.key)


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
