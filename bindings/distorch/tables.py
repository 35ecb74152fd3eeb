# SPDX-License-Identifier: Apache-2.0
"""The tables of `torch.nn.Module`s, as placing sees them: tensors by index, made, hung and dropped on request.

What is decided here is only how a tensor is made; which one, where and in which order is decided by
`distorch/placement/placement.h`. Nothing that C++ holds leads back to a model.
"""

from __future__ import annotations

import functools
import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn

from distorch._load import core
from distorch.devices import name_of
from distorch.model_blocks import Inventory, TensorPlace, TensorRef
from distorch.on_demand import refresh_flat_weights, was_written
from distorch.parts import (
    PLAIN_TYPES,
    can_rebuild,
    device_names,
    moved,
    parts_of,
    plain_bytes,
    rebuilt,
    tensor_bytes,
    version,
)
from distorch.patching import Patch, apply_patches
from distorch.printable import logger
from distorch.slabs import allocate, in_slab

if TYPE_CHECKING:
    from distorch._C import Placement

log = logger("distorch")

# (blocks done, blocks, bytes done, bytes), after each block of a load.
Reporter = Callable[[int, int, int, int], None]


class TensorTable(Protocol):
    """What `_C.Placement` calls; see `distorch/placement/tensor_table.h`. Devices are indices, 0 is no slab and no id."""

    progress: Reporter | None

    def make(
        self, i: int, device: int, current: bool, slab: int, offsets: Sequence[int]
    ) -> tuple[int, int]:
        """Make tensor `i`; returns its id and the bytes of patches' factors brought for it."""

    def hang(self, i: int, made: int) -> None:
        """Let the model use it."""

    def drop(self, made: int) -> None:
        """Let go of one that hangs nowhere."""

    def make_slab(self, device: int, size: int) -> int:
        """Return the id of `size` bytes of memory."""

    def seal_slab(self, slab: int) -> None:
        """Nothing more is made in it."""

    def read_back(self) -> list[int]:
        """Return where each tensor is now, -1 for a device that is none of the placement's."""

    def place_of(self, i: int) -> str:
        """Say where one is, for people."""

    def written(self, i: int) -> bool:
        """Whether somebody wrote into the tensor that hangs."""

    def keep_written(self, i: int) -> None:
        """Copy that into what was found."""


class ModuleTable:
    """Parameters and buffers of a module. One thread at a time.

    Attributes:
        refs: where each tensor hangs.
        found: the tensor that hung there first; what somebody else hung there since takes its place.
        same: the index of the first tensor that is the same memory.
        devices: names, by the index that `_C.Placement` uses.
        patches: by the first index; applied when a tensor is made from what was found.
        ran: whether the model ran since it was placed: running statistics may have changed.
    """

    def __init__(self, inventory: Inventory, compute: str, devices: Sequence[str]) -> None:
        self.refs: list[TensorRef] = [r for b in inventory.blocks for r in b.tensors]
        self.found = [ref.get() for ref in self.refs]
        self.same = inventory.same
        where = map(name_of, dict.fromkeys(tensor.device for tensor in self.found))
        self.devices = list(dict.fromkeys(["cpu", compute, *devices, *where]))
        self._index = {name: i for i, name in enumerate(self.devices)}
        self._index_at: dict[torch.device, int] = {}  # what `_at` has found
        self._compute = torch.device(compute)
        self._hung = list(self.found)
        self._versions: list[int] = [-1] * len(self.refs)
        self._ids_hung = [0] * len(self.refs)  # of what was made and hangs; 0: what was found does
        self._made: dict[int, torch.Tensor] = {}
        self._carried: set[int] = set()  # ids: made from what somebody had written
        self._slabs: dict[int, torch.Tensor] = {}
        # What was found where a copy stands in for it, and the copy's version then.
        self._before: dict[int, tuple[torch.Tensor, int]] = {}
        self._ids = itertools.count(1)
        self.patches: Mapping[int, Sequence[Patch]] = {}
        self.ran = False
        self.progress: Reporter | None = None

    def placement(self, inventory: Inventory, compute: str) -> Placement:
        """Return what decides for these tensors."""
        blocks = [(b.name, b.group, bool(b.pinned), not b.tied) for b in inventory.blocks]
        owner = (n for n, b in enumerate(inventory.blocks) for _ in b.tensors)
        rows = []
        for block, same, tensor in zip(owner, self.same, self.found, strict=True):
            if type(tensor) in PLAIN_TYPES:
                packs = tensor.layout is torch.strided
                sizes = [tensor.nbytes if packs else plain_bytes(tensor)]
            else:
                parts = parts_of(tensor)
                packs = can_rebuild(tensor) and all(p.layout is torch.strided for p in parts)
                sizes = [plain_bytes(part) for part in parts]
            rows.append((block, same, self._at(tensor.device), sizes, True, packs))
        return core().Placement(self.devices, self._index[compute], blocks, rows)

    def _at(self, device: torch.device) -> int:
        """Return the index of a device, -1 for one that is none of the placement's."""
        index = self._index_at.get(device)
        if index is None:
            index = self._index_at[device] = self._index.get(name_of(device), -1)
        return index

    def index_of(self, device: str) -> int:
        """Return the index of a device by its canonical name."""
        return self._index[device]

    def make(
        self, i: int, device: int, current: bool, slab: int, offsets: Sequence[int]
    ) -> tuple[int, int]:
        """See TensorTable."""
        source = self._hung[i] if current else self.found[i]
        patches = () if current else self.patches.get(self.same[i], ())
        factors = 0
        parts = [part.detach() for part in parts_of(source)]
        if patches:
            work = parts[0].to(self._compute, memory_format=torch.contiguous_format)
            if work.data_ptr() == parts[0].data_ptr():
                work = work.clone()
            factors = apply_patches(work, patches)
            parts = [work]
        if slab:
            tensor = in_slab(source, self._slabs[slab], offsets, parts)
        else:
            tensor = self._apart(source, parts, device, patched=bool(patches))
        made = next(self._ids)
        self._made[made] = tensor
        if current and self.written(i):
            self._carried.add(made)
        return made, factors

    def _apart(
        self, source: torch.Tensor, parts: list[torch.Tensor], device: int, *, patched: bool
    ) -> torch.Tensor:
        target = torch.device(self.devices[device])
        if not patched:
            return moved(source, target)
        # As the weight was laid out in memory, channels last or not.
        part = torch.empty_like(parts_of(source)[0], device=target)
        return rebuilt(source, [parts[0] if _alike(part, parts[0]) else part.copy_(parts[0])])

    def hang(self, i: int, made: int) -> None:
        """See TensorTable."""
        ref = self.refs[i]
        tensor = self._made[made] if made else self.found[i]
        self._versions[i] = version(tensor) if made else -1
        self._ids_hung[i] = made
        self._hung[i] = ref.table[ref.name] = tensor
        if isinstance(ref.module, nn.RNNBase):
            refresh_flat_weights(ref.module)

    def drop(self, made: int) -> None:
        """See TensorTable."""
        del self._made[made]
        self._carried.discard(made)

    def make_slab(self, device: int, size: int) -> int:
        """See TensorTable."""
        slab = next(self._ids)
        self._slabs[slab] = allocate(size, torch.device(self.devices[device]))
        return slab

    def seal_slab(self, slab: int) -> None:
        """See TensorTable."""
        del self._slabs[slab]

    def read_back(self) -> list[int]:
        """See TensorTable."""
        places = []
        for ref in self.refs:
            tensor = ref.get()
            if type(tensor) in PLAIN_TYPES:
                places.append(self._at(tensor.device))
            else:
                devices = {part.device for part in parts_of(tensor)} or {tensor.device}
                places.append(self._at(devices.pop()) if len(devices) == 1 else -1)
        return places

    def place_of(self, i: int) -> str:
        """See TensorTable."""
        return ", ".join(sorted(device_names(self.refs[i].get())))

    def written(self, i: int) -> bool:
        """See TensorTable."""
        before, tensor, ref = self._versions[i], self._hung[i], self.refs[i]
        if before < 0:
            return False  # it is what was found
        if self._ids_hung[i] in self._carried:
            return True  # it came from where it had been written
        if ref.kind == "buffer":
            return self.ran and was_written(ref.module, tensor, before)
        return tensor._version != before

    def keep_written(self, i: int) -> None:
        """See TensorTable."""
        ref, patches = self.refs[i], self.patches.get(self.same[i])
        if patches:
            log.warning(
                "%s was written to while it was patched: its patches are part of it now",
                ref.qualified,
            )
        with torch.no_grad():
            self.found[i].copy_(self._hung[i])

    # What others did meanwhile

    def look(self) -> None:
        """Take over what somebody else hung in the model; only while it does not run."""
        for i, ref in enumerate(self.refs):
            now = ref.table.get(ref.name)
            if now is not None and now is not self._hung[i]:
                self.found[i] = self._hung[i] = now
                self._before.pop(i, None)
                self._versions[i], self._ids_hung[i] = -1, 0

    @functools.cached_property
    def _by_place(self) -> dict[tuple[int, str], int]:
        return {(id(ref.table), ref.name): i for i, ref in enumerate(self.refs)}

    def replace(self, moved_tensors: Sequence[tuple[TensorPlace, torch.Tensor]]) -> None:
        """Hang copies of tensors that hang, on the same device: an engine has packed them."""
        for place, tensor in moved_tensors:
            i = self._by_place[id(place.table), place.name]
            if made := self._ids_hung[i]:
                self._made[made] = tensor
                self._versions[i] = version(tensor)
            else:
                self._before.setdefault(i, (self.found[i], version(tensor)))
                self.found[i] = tensor
            self._hung[i] = place.table[place.name] = tensor

    def unpack(self) -> None:
        """Hang what was found before `replace`; only when what was found hangs."""
        for i, (tensor, before) in self._before.items():
            if self._hung[i] is not self.found[i]:
                continue
            if version(self.found[i]) != before:
                with torch.no_grad():
                    tensor.copy_(self.found[i])
            self.found[i] = tensor
            self.hang(i, 0)
        self._before.clear()


def _alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.device == other.device and one.stride() == other.stride()


def bytes_per_device(inventory: Inventory) -> dict[str, int]:
    """Return where the bytes of a model are now, tensors that are one counted once."""
    totals: dict[str, int] = defaultdict(int)
    refs = (ref for block in inventory.blocks for ref in block.tensors)
    for i, (first, ref) in enumerate(zip(inventory.same, refs, strict=True)):
        if first == i:
            tensor = ref.get()
            totals[name_of(tensor.device)] += tensor_bytes(tensor)
    return dict(totals)
